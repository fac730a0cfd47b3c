"""Disks: opening them, what is mounted on them, reading round the page cache, and writing pull targets."""
