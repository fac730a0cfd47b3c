"""The rescue image: a small Debian live system that brings a server home (docs/runbooks/failback.md)."""
