"""How a recovery site tells an instance's agent which of its disks is which volume: by the disk's serial number."""

from __future__ import annotations

import hashlib


def volume_serial(server_id: str, path: str) -> str:
    """The serial number of the replica of the volume protected as `path`: 20 characters, the most that virtio, ATA and
    NVMe disks have. It tells servers apart too, so a disk of another server's instance is never taken for one's own."""
    return "us-" + hashlib.sha256(f"{server_id}\0{path}".encode(errors="surrogateescape")).hexdigest()[:17]
