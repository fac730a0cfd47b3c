"""What on a disk tells it from others, wherever it is attached: its partition table's identity, its filesystems' UUIDs.

Pure: whoever has the disk's bytes can ask. What lies on a disk may be anything, and its marks are what it says of
itself: a copy of a disk has the same ones.

Not among them: sizes and places (cloud images grow their partitions at the first boot) and swap (some systems make it
anew at each boot).
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass

Read = Callable[[int, int], bytes]
"""(offset, length) -> the bytes there; fewer, or none, behind the end."""

_HEAD_BYTES = 0x11000  # as far as the farthest superblock below
_SECTOR_SIZES = (512, 4096)
_MOST_PARTITIONS = 128  # as many as GPT has in practice, so that a disk that lies costs no more than an honest one
_PROTECTIVE, _EXTENDED = 0xEE, (0x05, 0x0F, 0x85)


def marks(read: Read) -> list[str]:
    """Like `["gpt:8b2e...", "1 fat:4a5c-...", "2 ext:5f1c..."]`; the number is the partition's. Empty: nothing tells it
    from others. The order is always the same, so lists can be compared."""
    head = read(0, _HEAD_BYTES)
    table, partitions = _partitions(read, head)
    if table is None and not partitions:
        whole = _content(head)
        return [] if whole is None else [whole]
    found = [table] if table is not None else []
    for number, offset in partitions:
        inside = _content(read(offset, _HEAD_BYTES))
        if inside is not None:
            found.append(f"{number} {inside}")
    return found


# --- partition tables ---


def _partitions(read: Read, head: bytes) -> tuple[str | None, list[tuple[int, int]]]:
    """The table's mark, and (number, offset in bytes) of its partitions."""
    if head[510:512] != b"\x55\xaa":
        return None, []
    entries = [struct.unpack_from("<B3xB3xII", head, 446 + 16 * index) for index in range(4)]
    if any(kind == _PROTECTIVE for _, kind, _, _ in entries):  # without it what looks like a GPT is a leftover
        for sector_bytes in _SECTOR_SIZES:
            if head[sector_bytes : sector_bytes + 8] == b"EFI PART":
                return _gpt(read, head[sector_bytes : sector_bytes + 92], sector_bytes)
        return None, []
    if any(status not in (0, 0x80) for status, _, _, _ in entries) or not any(kind for _, kind, _, _ in entries):
        return None, []  # a boot sector of another kind
    signature = int.from_bytes(head[440:444], "little")
    used = [
        (number, start * 512)
        for number, (_, kind, start, length) in enumerate(entries, 1)
        if kind and length and kind not in _EXTENDED
    ]
    return f"dos:{signature:08x}" if signature else None, used


def _gpt(read: Read, header: bytes, sector_bytes: int) -> tuple[str | None, list[tuple[int, int]]]:
    guid = uuid.UUID(bytes_le=header[56:72])
    at, count, entry_bytes = struct.unpack_from("<QII", header, 72)
    if not 128 <= entry_bytes <= 4096:
        return None, []
    count = min(count, _MOST_PARTITIONS)
    table = read(at * sector_bytes, count * entry_bytes)
    used = []
    for index in range(len(table) // entry_bytes):
        entry = table[index * entry_bytes :][:entry_bytes]
        if any(entry[:16]):  # its type
            used.append((index + 1, int.from_bytes(entry[32:40], "little") * sector_bytes))
    return f"gpt:{guid}" if guid.int else None, used


# --- what lies in a partition, or on a disk without any ---


@dataclass(frozen=True, slots=True)
class _Format:
    name: str
    magic_at: int
    magic: bytes
    ids: tuple[tuple[int, int], ...]
    """(offset, length) of what identifies it; several where the members of a set share one."""


_FORMATS = (
    _Format("luks", 0, b"LUKS\xba\xbe", ((168, 40),)),
    *(_Format("lvm", at, b"LABELONE", ((at + 32, 32),)) for at in (0, 512, 1024, 1536)),
    *(_Format("md", at, b"\xfc\x4e\x2b\xa9", ((at + 16, 16), (at + 168, 16))) for at in (0, 4096)),
    _Format("xfs", 0, b"XFSB", ((32, 16),)),
    _Format("ext", 0x438, b"\x53\xef", ((0x468, 16),)),
    _Format("btrfs", 0x10040, b"_BHRfS_M", ((0x10020, 16), (0x1010B, 16))),
    _Format("ntfs", 3, b"NTFS    ", ((0x48, 8),)),
    _Format("fat", 82, b"FAT32   ", ((67, 4),)),
    *(_Format("fat", 54, name, ((39, 4),)) for name in (b"FAT16   ", b"FAT12   ")),
)


def _content(head: bytes) -> str | None:
    for kind in _FORMATS:
        if head[kind.magic_at : kind.magic_at + len(kind.magic)] == kind.magic:
            ids = [head[at : at + length] for at, length in kind.ids]
            return f"{kind.name}:{'/'.join(_written(one) for one in ids)}" if any(map(any, ids)) else None
    return None


def _written(identifier: bytes) -> str:
    """As the system's own tools show it, as far as that is simple."""
    text = identifier.rstrip(b"\0")
    if len(identifier) > 16 and text.isascii():  # LVM and LUKS keep theirs as text
        return "".join(_printable(text.decode("ascii")))
    return str(uuid.UUID(bytes=identifier)) if len(identifier) == 16 else identifier[::-1].hex()


def _printable(text: str) -> Iterator[str]:
    return (letter if letter.isprintable() else "?" for letter in text)
