"""What is on a disk, in a few words, from the first bytes of it and of its partitions: for whoever has to tell disks
apart. Nothing is mounted; what is there may be anything."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

HEAD_BYTES = 0x10048
_EXT, _XFS, _BTRFS = 0x400, 0, 0x10000


@dataclass(frozen=True, slots=True)
class Disk:
    name: str
    size_bytes: int
    model: str
    serial: str
    holds: str


def disks_of(found: Iterable[dict[str, Any]], head_of: Callable[[str], bytes]) -> list[Disk]:
    """`found` as the inventory has them."""
    return [
        Disk(
            name=disk["name"],
            size_bytes=disk["size_bytes"],
            model=disk["model"],
            serial=disk["serial"],
            holds=contents(head_of(disk["name"]), [(one["name"], head_of(one["name"])) for one in disk["partitions"]]),
        )
        for disk in found
    ]


def read_head(device: str) -> bytes:
    """The first bytes of a device; none of what cannot be read."""
    try:
        with open(device, "rb", buffering=0) as file:
            return os.pread(file.fileno(), HEAD_BYTES, 0)
    except OSError:
        return b""


def contents(head: bytes, partitions: Sequence[tuple[str, bytes]]) -> str:
    """In words: `empty`, `ext4 "rootfs"`, or what its partitions hold."""
    if partitions:
        return ", ".join(f"{name.rpartition('/')[2]}: {_kind(part) or 'unknown data'}" for name, part in partitions)
    if not head:
        return "cannot be read"
    kind = _kind(head)
    if kind is not None:
        return kind
    if head[510:512] == b"\x55\xaa":
        return "a boot sector, without partitions that this system knows"
    return "unknown data" if any(head) else "nothing at its beginning: it seems empty"


def _kind(head: bytes) -> str | None:
    """None where nothing is known."""
    if head[_EXT + 0x38 : _EXT + 0x3A] == b"\x53\xef":
        return _labelled("ext4", head[_EXT + 0x78 : _EXT + 0x88])
    if head[_XFS : _XFS + 4] == b"XFSB":
        return _labelled("xfs", head[108:120])
    if head[_BTRFS + 0x40 : _BTRFS + 0x48] == b"_BHRfS_M":
        return "btrfs"
    if head[3:11] == b"NTFS    ":
        return "NTFS (Windows)"
    if head[82:87] == b"FAT32":
        return _labelled("FAT", head[71:82])
    if head[54:59] in (b"FAT16", b"FAT12"):
        return _labelled("FAT", head[43:54])
    if head[4086:4096] == b"SWAPSPACE2":
        return "swap"
    if head[512:520] == b"LABELONE":
        return "LVM"
    if head[:6] == b"LUKS\xba\xbe":
        return "encrypted (LUKS)"
    if head[4096:4100] == b"\xfc\x4e\x2b\xa9":
        return "part of a RAID (md)"
    return None if any(head) else "nothing"


def _labelled(kind: str, label: bytes) -> str:
    text = label.rstrip(b"\0 ").decode("ascii", errors="replace")
    clean = "".join(letter if letter.isascii() and letter.isprintable() else "?" for letter in text)
    return f'{kind} "{clean}"' if clean and clean != "NO NAME" else kind
