"""Has anybody written to a source since we began to read it? For sources without a mounted filesystem to freeze.

Block devices: the kernel counts writes and discards that it completed. Image files: the time of the last change.
"""

from __future__ import annotations

import os
import stat
import time
from dataclasses import dataclass, field
from pathlib import Path

from agent.protocol.errors import SourceError

SYSFS_DEVICES = Path("/sys/dev/block")
# The kernel stamps files once a tick on older versions (10 ms at HZ=100): a stamp younger than that may repeat.
_STAMP_GRAIN_SECONDS = 0.05
_STAMP_TRIES = 3


@dataclass(frozen=True, slots=True)
class ActivityMark:
    """Equal marks: nothing was written in between, if the later one is `reliable`: the kernel counts, stamps differ."""

    values: tuple[int, ...]
    reliable: bool = field(default=True, compare=False)


def mark(path: str) -> ActivityMark:
    """A mark to compare with a later one. For a file written a moment ago it waits until stamps can be told apart.

    Raises SourceError."""
    try:
        found = os.stat(path)
        if stat.S_ISBLK(found.st_mode):
            return _device_writes(found.st_rdev)
        for _ in range(_STAMP_TRIES):
            if not 0 <= time.time() - found.st_mtime < _STAMP_GRAIN_SECONDS:
                return ActivityMark((found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size))
            time.sleep(_STAMP_GRAIN_SECONDS)
            found = os.stat(path)
    except (OSError, ValueError) as error:
        raise SourceError(f"whether {path} is written to cannot be found out: {error}") from error
    return ActivityMark((found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size), reliable=False)


def _device_writes(device: int) -> ActivityMark:
    """Completed writes, merges, sectors, and the same of discards (Documentation/block/stat.rst).

    A device that we have read without one read being counted counts no writes either: `iostats` may be off, and some
    drivers know no counting."""
    folder = SYSFS_DEVICES / f"{os.major(device)}:{os.minor(device)}"
    fields = [int(value) for value in (folder / "stat").read_text().split()]
    disk = folder.resolve()
    if (disk / "partition").exists():
        disk = disk.parent
    counting = disk / "queue" / "iostats"
    counts = fields[0] > 0 and not (counting.exists() and counting.read_text().strip() == "0")
    return ActivityMark(tuple(fields[4:7] + fields[11:14]), reliable=counts)
