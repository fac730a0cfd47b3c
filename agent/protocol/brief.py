"""Brief offers: what is held of consecutive blocks, told by the beginnings of their digests.

Where little differs, offers are most of what a pull sends: 40 bytes for each block are 640 MiB for a TiB. 8 bytes tell
blocks apart as well, but for one pair in 2^64; what they missed shows in the root, and then whole digests are offered.

    first block u64; then the first 8 bytes of the digest of each block from there on. No frame, and no seal: a wrong
    offer costs bytes, and the root proves what came of it.
"""

from __future__ import annotations

import struct

from agent.protocol.digests import DIGEST_BYTES
from agent.protocol.errors import BadFrame
from agent.protocol.frames import MAX_BLOCKS
from agent.protocol.grid import BlockGrid

SHORT_BYTES = 8
_FIRST = struct.Struct("<Q")

Buffer = bytes | bytearray | memoryview


def beginnings(digests: Buffer) -> bytes:
    """The first SHORT_BYTES of each of these digests."""
    return memoryview(digests).cast("Q")[:: DIGEST_BYTES // SHORT_BYTES].tobytes()


def encode_brief(first: int, digests: Buffer) -> bytes:
    """`digests` are those of the blocks from `first` on, whole."""
    return _FIRST.pack(first) + beginnings(digests)


def decode_brief(body: Buffer, grid: BlockGrid) -> tuple[range, memoryview]:
    """The blocks, and the beginnings of their digests, one after the other. Raises BadFrame."""
    count, rest = divmod(len(body) - _FIRST.size, SHORT_BYTES)
    if count < 0 or rest:
        raise BadFrame("the brief offer is cut short")
    (first,) = _FIRST.unpack_from(body)
    if count > MAX_BLOCKS or first + count > grid.count:
        raise BadFrame(f"a brief offer of {count} blocks from {first} on does not fit a volume of {grid.count}")
    return range(first, first + count), memoryview(body)[_FIRST.size :]
