"""The rescue program: what a machine without a system runs to become a server again."""
