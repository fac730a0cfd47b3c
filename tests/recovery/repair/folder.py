"""GuestFiles of a folder on this machine: for what looks at files and does not care where they are."""

from __future__ import annotations

import glob
from pathlib import Path

from recovery.repair.disks import Disks, Filesystem
from recovery.repair.files import MAX_FILE_BYTES
from recovery.repair.linux.system import System
from recovery.repair.record import FileChange

ROOT_UUID = "5f1c0de0-0de5-4b1d-9e57-0a4de25beb01"
SWAP_UUID = "11111111-2222-3333-4444-555555555555"


class FolderFiles:
    """`esp:` is the folder's esp."""

    def __init__(self, root: Path, texts: dict[str, str] | None = None) -> None:
        self.root = root
        for path, text in (texts or {}).items():
            self.write(path, text.encode())

    def place(self, path: str) -> Path:
        return self.root / ("esp" + path[4:] if path.startswith("esp:") else path[1:])

    def read(self, path: str, limit_bytes: int = MAX_FILE_BYTES) -> bytes | None:
        place = self.place(path)
        return place.read_bytes() if place.is_file() and place.stat().st_size <= limit_bytes else None

    def glob(self, pattern: str) -> list[str]:
        found = sorted(glob.glob(str(self.place(pattern))))
        prefix = "esp:" if pattern.startswith("esp:") else ""
        return [prefix + path.removeprefix(str(self.root) + ("/esp" if prefix else "")) for path in found]

    def write(self, path: str, content: bytes, *, kept_bytes: int = 0, mode: int = 0o644) -> None:
        place = self.place(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        kept = place.read_bytes()[:kept_bytes] if kept_bytes else b""
        place.write_bytes(kept + content)
        place.chmod(mode)

    def remove(self, path: str) -> None:
        self.place(path).unlink(missing_ok=True)


def system(*, family: str = "debian", has_esp: bool = False, boots_by_bios: bool = True, **more: str) -> System:
    """A disk with root on its first partition, swap on its second."""
    root = Filesystem(
        device="/dev/vda1", kind="ext4", uuid=ROOT_UUID, disk=0, partition=1, partition_uuid="c0ffee00-01", label="root"
    )
    swap = Filesystem(device="/dev/vda2", kind="swap", uuid=SWAP_UUID, disk=0, partition=2)
    disks = Disks((root, swap), starts_by_bios=boots_by_bios)
    return System(name="Debian", family=family, disks=disks, root=root, has_esp=has_esp)


def after(changes: tuple[FileChange, ...]) -> dict[str, str | None]:
    """Path -> what it becomes."""
    return {change.path: None if change.after is None else change.after.decode() for change in changes}
