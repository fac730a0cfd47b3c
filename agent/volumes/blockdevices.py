"""The machine's block devices and how they are stacked, from /sys/class/block."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

SYS = Path("/sys")
NOT_DISKS = ("loop", "ram", "zram", "sr", "fd", "dm-", "md", "nbd")
"""How the names of block devices begin that are no disks of a machine: made of disks or files, or not to stay."""


@dataclass(frozen=True, slots=True)
class BlockDevice:
    """A disk, partition, or something made of them. `number` is "major:minor".

    `parent` is the disk of a partition. `holders` are the names of what is stacked directly on it (dm, md).
    `backing_file` is what a loop device shows; `members` all devices of the btrfs filesystem that it belongs to.
    """

    name: str
    number: str
    size_bytes: int
    parent: str | None = None
    holders: tuple[str, ...] = ()
    backing_file: str | None = None
    members: tuple[str, ...] = ()


def read_block_devices(sys: Path = SYS) -> list[BlockDevice]:
    """All block devices; what vanishes while it is read is left out. Raises OSError when there is no /sys."""
    pools = _read_pools(sys)
    devices = []
    for entry in sorted((sys / "class/block").iterdir()):
        folder = entry.resolve()
        try:
            backing = folder / "loop/backing_file"
            devices.append(
                BlockDevice(
                    name=entry.name,
                    number=(folder / "dev").read_text().strip(),
                    size_bytes=int((folder / "size").read_text()) * 512,
                    parent=folder.parent.name if (folder / "partition").exists() else None,
                    holders=_names(folder / "holders"),
                    backing_file=os.fsdecode(backing.read_bytes().rstrip(b"\n")) if backing.exists() else None,
                    members=next((pool for pool in pools if entry.name in pool), ()),
                )
            )
        except (OSError, ValueError):
            continue
    return devices


def disk_folder_number(major: int, minor: int, sys: Path = SYS) -> int | None:
    """The inode number of the disk's folder in sysfs, which is not given twice in one boot; of a partition its disk's.
    None where another disk may come into the same folder: where media are changed, or files are shown. Raises OSError.
    """
    folder = (sys / f"dev/block/{major}:{minor}").resolve(strict=True)
    disk = folder.parent if (folder / "partition").exists() else folder
    if (disk / "loop").exists() or (disk / "removable").read_text().strip() != "0":
        return None
    return disk.stat().st_ino


def stacked_on(names: Iterable[str], devices: Iterable[BlockDevice]) -> set[str]:
    """The names given, and of everything that lives on them: partitions, holders, loops, the rest of a btrfs pool."""
    by_name = {device.name: device for device in devices}
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in found or name not in by_name:
            continue
        found.add(name)
        waiting += by_name[name].holders
        waiting += by_name[name].members
        waiting += [
            other.name for other in by_name.values() if other.parent == name or other.backing_file == f"/dev/{name}"
        ]
    return found


def names_at(path: str, devices: Iterable[BlockDevice]) -> set[str]:
    """The block device at `path`, or the loop devices that show the image file at `path`. Raises OSError."""
    found = Path(path).stat()
    if stat.S_ISBLK(found.st_mode):
        number = f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"
        return {device.name for device in devices if device.number == number}
    return {device.name for device in devices if device.backing_file and _same_file(device.backing_file, found)}


def _same_file(path: str, found: os.stat_result) -> bool:
    try:
        return os.path.samestat(Path(path).stat(), found)
    except OSError:  # deleted since, or in another mount namespace
        return False


def _names(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(entry.name for entry in folder.iterdir())) if folder.is_dir() else ()


def _read_pools(sys: Path) -> list[tuple[str, ...]]:
    """The devices of every mounted btrfs filesystem; mountinfo names only one of them."""
    return [_names(folder) for folder in (sys / "fs/btrfs").glob("*/devices")]
