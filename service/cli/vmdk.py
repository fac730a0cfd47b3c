"""VMware's stream-optimized disk, as ovftool and vSphere exchange them: compressed grains one after the other, each
table behind the grains that it lists, the directory of tables at the end. (VMware's "Virtual Disk Format 5.0".)

qemu-img can write one too, with its tables in front, and not every reader takes that.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

from agent.protocol.errors import StorageError

GRAIN_BYTES = 65_536
_SECTOR_BYTES = 512
_GRAIN_SECTORS = GRAIN_BYTES // _SECTOR_BYTES
_GRAINS_A_TABLE = 512
_TABLE = struct.Struct(f"<{_GRAINS_A_TABLE}I")
_DESCRIPTOR_SECTORS = 20
_OVERHEAD_SECTORS = 128
_VERSION = 3
_FLAGS = 0x30001
"""Newlines are to be checked; grains are compressed; markers lie between them."""
_NEWLINES = b"\n \r\n"
_DEFLATE = 1
_AT_END = 0xFFFF_FFFF_FFFF_FFFF
# magic, version, flags; capacity, grain, descriptor's place and length in sectors; grains a table; redundant directory,
# directory, overhead; unclean shutdown; newlines; compression
_HEADER = struct.Struct("<4s2I4QI3Q?4sH433x")
_MARKER = struct.Struct("<QII496x")  # sectors that follow, 0, kind
_GRAIN = struct.Struct("<QI")  # its first sector, compressed bytes
_END, _TABLE_FOLLOWS, _DIRECTORY_FOLLOWS, _FOOTER_FOLLOWS = range(4)
_ZEROS = bytes(GRAIN_BYTES)
_MAX_SECTORS = 1 << 32
_NO_PARENT = ("ffffffff", "fffffffe")
_TRACKS, _TRACK_SECTORS, _MAX_CYLINDERS = 255, 63, 65_535


def write_stream_optimized(
    disk: BinaryIO, size_bytes: int, out: BinaryIO, name: str, root: str, progress: Callable[[int], None]
) -> None:
    """Write the disk's content, whole grains, to `out` (seekable, at its beginning), which is to be called `name`.

    `root`, 32 hexadecimal digits or more, tells contents apart; `progress` hears how many bytes are done.
    Raises StorageError (the result would be too large for the format), OSError."""
    capacity = size_bytes // _SECTOR_BYTES
    out.write(_header(capacity, _AT_END))
    out.write(_descriptor(capacity, name, root).ljust(_DESCRIPTOR_SECTORS * _SECTOR_BYTES, b"\0"))
    _fill(out, _OVERHEAD_SECTORS * _SECTOR_BYTES)
    directory = []
    with ThreadPoolExecutor(os.cpu_count()) as packers:
        for first in range(0, size_bytes // GRAIN_BYTES, _GRAINS_A_TABLE):
            table = [0] * _GRAINS_A_TABLE
            for place, packed in enumerate(packers.map(_packed, _grains(disk, size_bytes, first))):
                if packed:
                    table[place] = _sector(out)
                    out.write(_GRAIN.pack((first + place) * _GRAIN_SECTORS, len(packed)) + packed)
                    _fill(out, _SECTOR_BYTES)
            directory.append(_marked(out, _TABLE_FOLLOWS, _TABLE.pack(*table)) if any(table) else 0)
            progress(min((first + _GRAINS_A_TABLE) * GRAIN_BYTES, size_bytes))
    at = _marked(out, _DIRECTORY_FOLLOWS, struct.pack(f"<{len(directory)}I", *directory))
    _marked(out, _FOOTER_FOLLOWS, _header(capacity, at))
    out.write(_MARKER.pack(0, 0, _END))


def _grains(disk: BinaryIO, size_bytes: int, first: int) -> Iterator[bytes]:
    """Those of one table."""
    disk.seek(first * GRAIN_BYTES)
    for _ in range(min(_GRAINS_A_TABLE, size_bytes // GRAIN_BYTES - first)):
        yield disk.read(GRAIN_BYTES)


def _packed(grain: bytes) -> bytes:
    """Nothing for zeros."""
    return b"" if grain == _ZEROS else zlib.compress(grain)


def _header(capacity: int, directory: int) -> bytes:
    return _HEADER.pack(
        b"KDMV",
        _VERSION,
        _FLAGS,
        capacity,
        _GRAIN_SECTORS,
        1,
        _DESCRIPTOR_SECTORS,
        _GRAINS_A_TABLE,
        0,
        directory,
        _OVERHEAD_SECTORS,
        False,
        _NEWLINES,
        _DEFLATE,
    )


def _descriptor(capacity: int, name: str, root: str) -> bytes:
    content_id = root[24:32] if root[24:32] not in _NO_PARENT else "fffffffd"
    cylinders = min(-(-capacity // (_TRACKS * _TRACK_SECTORS)), _MAX_CYLINDERS)
    return f"""# Disk DescriptorFile
version=1
encoding="UTF-8"
CID={content_id}
parentCID=ffffffff
createType="streamOptimized"

# Extent description
RDONLY {capacity} SPARSE "{name}"

# The Disk Data Base
#DDB

ddb.longContentID = "{root[:24]}{content_id}"
ddb.virtualHWVersion = "4"
ddb.geometry.cylinders = "{cylinders}"
ddb.geometry.heads = "{_TRACKS}"
ddb.geometry.sectors = "{_TRACK_SECTORS}"
ddb.adapterType = "lsilogic"
ddb.toolsVersion = "2147483647"
""".encode()


def _marked(out: BinaryIO, kind: int, content: bytes) -> int:
    """Write it behind its marker; the sector where it begins."""
    out.write(_MARKER.pack(-(-len(content) // _SECTOR_BYTES), 0, kind))
    at = _sector(out)
    out.write(content)
    _fill(out, _SECTOR_BYTES)
    return at


def _sector(out: BinaryIO) -> int:
    at = out.tell() // _SECTOR_BYTES
    if at >= _MAX_SECTORS:
        raise StorageError("a stream-optimized VMDK holds 2 TiB of compressed data at most", "export it as raw")
    return at


def _fill(out: BinaryIO, unit: int) -> None:
    """With zeros up to the next multiple."""
    out.write(bytes(-out.tell() % unit))
