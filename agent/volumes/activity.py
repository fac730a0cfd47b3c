"""Has anybody written to a source since we began to read it? For sources without a mounted filesystem to freeze.

Block devices: the kernel counts writes and discards that it completed. Image files: the time of the last change.
"""

from __future__ import annotations

import os
import stat
import time
from dataclasses import dataclass
from pathlib import Path

# The kernel stamps files once a tick on older versions (10 ms at HZ=100): a stamp younger than that may repeat.
_STAMP_GRAIN_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class ActivityMark:
    """Equal marks: nothing was written in between."""

    values: tuple[int, ...]


def mark(path: str) -> ActivityMark:
    """A mark to compare with a later one. For a file written a moment ago it waits until stamps can be told apart."""
    found = os.stat(path)
    if stat.S_ISBLK(found.st_mode):
        return ActivityMark(_device_writes(found.st_rdev))
    age_seconds = time.time() - found.st_mtime
    if 0 <= age_seconds < _STAMP_GRAIN_SECONDS:
        time.sleep(_STAMP_GRAIN_SECONDS)
        found = os.stat(path)
    return ActivityMark((found.st_mtime_ns, found.st_ctime_ns, found.st_size))


def _device_writes(device: int) -> tuple[int, ...]:
    """Completed writes, sectors written, discards and sectors discarded (Documentation/block/stat.rst)."""
    fields = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat").read_text().split()
    return tuple(int(value) for value in fields[4:6] + fields[11:14])
