"""What is mounted: /proc/self/mountinfo and /proc/swaps as plain data. Parsing only, apart from two small readers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo. `number` is the superblock's device as "major:minor", `source` what mount(8) shows.

    `read_only` is the superblock's: a read-only bind mount of a writable filesystem is not read-only.
    """

    mount_id: int
    number: str
    mountpoint: str
    fstype: str
    source: str
    read_only: bool


def parse_mountinfo(text: str) -> list[Mount]:
    """All mounts, in the order they were made; lines that are not understood are left out."""
    mounts = []
    for line in text.splitlines():
        before, separator, after = line.partition(" - ")
        left, right = before.split(" "), after.split(" ")
        if not separator or len(left) < 6 or len(right) < 2 or not left[0].isdigit():
            continue
        options = right[2].split(",") if len(right) > 2 else []
        mounts.append(
            Mount(
                mount_id=int(left[0]),
                number=left[2],
                mountpoint=_unescape(left[4]),
                fstype=right[0],
                source=_unescape(right[1]),
                read_only="ro" in options,
            )
        )
    return mounts


def parse_swaps(text: str) -> list[str]:
    """The paths of the devices and files that are swapped to."""
    return [_unescape(line.split()[0]) for line in text.splitlines()[1:] if line.strip()]


def read_mounts() -> list[Mount]:
    """The mounts that this process sees. Raises OSError."""
    return parse_mountinfo(Path("/proc/self/mountinfo").read_text(errors="surrogateescape"))


def read_swaps() -> list[str]:
    """Paths that are swapped to now; none where the kernel has no swap."""
    try:
        return parse_swaps(Path("/proc/swaps").read_text(errors="surrogateescape"))
    except FileNotFoundError:
        return []


def _unescape(field: str) -> str:
    """The kernel writes blank, tab, newline and backslash as three octal digits of one byte each."""
    return _ESCAPE.sub(lambda found: chr(int(found[1], 8)), field)
