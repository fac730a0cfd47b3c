"""Where a source volume lies: its whole disk as sysfs describes it. The disk itself is never opened."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from agent.protocol.grid import MAX_VOLUME_BYTES

SYSFS_DEVICES = Path("/sys/dev/block")
_SYSFS_SECTOR_BYTES = 512  # sysfs counts in these whatever the disk's own sectors are


@dataclass(frozen=True, slots=True)
class Untracked:
    """The source's changes cannot be tracked; `reason` is for an operator. The caller scans instead."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedDisk:
    """A whole disk of `disk_bytes`, and the source on it: all of it, or the partition that begins at `source_at`."""

    major: int
    minor: int
    disk_bytes: int
    discard_segments: int
    source_at: int
    source_bytes: int
    sysfs: Path
    stat: Path

    def resized(self) -> bool:
        """Has the source another size now, or is it gone? Raises nothing."""
        try:
            return _bytes_from_sectors(self.sysfs / "size") != self.source_bytes
        except (OSError, ValueError):
            return True


def locate(path: str) -> TrackedDisk | Untracked:
    """The disk behind a path; a symlink is followed."""
    try:
        status = Path(path).stat()
    except OSError as error:
        return Untracked(f"{path}: {error.strerror}")
    if not stat.S_ISBLK(status.st_mode):
        return Untracked(f"{path} is not a block device: writes to files cannot be seen as a disk's requests")
    device = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    try:
        return describe((SYSFS_DEVICES / device).resolve(strict=True))
    except (OSError, ValueError) as error:
        return Untracked(f"{path}: sysfs does not describe it as expected ({error})")


def describe(source: Path) -> TrackedDisk | Untracked:
    """The disk at, or above, this folder of sysfs. Raises OSError or ValueError where sysfs has other files."""
    disk = source.parent if (source / "partition").exists() else source
    name = disk.name
    if (disk / "dm").exists() or not (disk / "mq").is_dir():
        # Device mapper, md, zram and NVMe multipath pass writes on without requests of their own.
        return Untracked(f"{name} is made of other disks; only those could be tracked")
    if _text(disk / "queue/zoned", "none") != "none":
        return Untracked(f"{name} is a zoned disk")
    if _text(disk / "queue/dax", "0") != "0":
        return Untracked(f"{name} can be written without requests (DAX)")
    if _text(disk / "queue/iostats", "0") == "0":
        return Untracked(f"{name} keeps no statistics to check the tracking by (queue/iostats)")
    major, _, minor = _text(disk / "dev").partition(":")
    disk_bytes = _bytes_from_sectors(disk / "size")
    source_bytes = _bytes_from_sectors(source / "size")
    source_at = 0 if source == disk else _bytes_from_sectors(source / "start")
    if not 0 < disk_bytes <= MAX_VOLUME_BYTES:
        return Untracked(f"{name} has {disk_bytes} bytes; from 1 byte to 64 TiB can be tracked")
    if not source_bytes or source_at + source_bytes > disk_bytes:
        return Untracked(f"partition {source.name} does not lie within {name}")
    return TrackedDisk(
        major=int(major),
        minor=int(minor),
        disk_bytes=disk_bytes,
        discard_segments=int(_text(disk / "queue/max_discard_segments")),
        source_at=source_at,
        source_bytes=source_bytes,
        sysfs=source,
        stat=disk / "stat",
    )


def _text(path: Path, absent: str | None = None) -> str:
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        if absent is None:
            raise
        return absent


def _bytes_from_sectors(path: Path) -> int:
    return int(_text(path)) * _SYSFS_SECTOR_BYTES
