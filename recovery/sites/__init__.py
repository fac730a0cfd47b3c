"""Sites: where replicas live and boot. contract.py says what one must do; local/ is QEMU and qcow2."""
