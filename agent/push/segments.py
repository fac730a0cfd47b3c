"""Segments: where a replica is as the source is, learnt from a digest for each 1024 blocks, before blocks are offered.

For when nobody here knows what the receiver holds: the cache was lost, or a push was cut off."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from agent.client import ServiceClient
from agent.protocol.digests import DIGEST_BYTES, SEGMENT_BLOCKS, segment_digest
from agent.protocol.errors import BadMessage
from agent.protocol.grid import BlockGrid

Piece = tuple[range, bool]
"""Blocks, and whether there is data in them."""


@dataclass(slots=True)
class Compared:
    """A segment of the source, held against what the receiver says of its own."""

    segment: int
    size_bytes: int
    read_bytes: int = 0
    is_equal: bool = False


async def ask_segments(client: ServiceClient, session: str, index: int, grid: BlockGrid) -> list[bytes]:
    """The digest of each segment of the replica. Raises what ServiceClient.call raises, and BadMessage."""
    count = -(-grid.count // SEGMENT_BLOCKS)
    found: list[bytes] = []
    while len(found) < count:
        path = f"/agent/v1/sessions/{session}/volumes/{index}/segments?first={len(found)}"
        answer = await client.call("GET", path, [b""])
        if not answer or len(answer) % DIGEST_BYTES or len(answer) > (count - len(found)) * DIGEST_BYTES:
            raise BadMessage(f"{len(answer)} bytes are no digests of {count - len(found)} segments")
        found += [answer[at : at + DIGEST_BYTES] for at in range(0, len(answer), DIGEST_BYTES)]
    return found


def segment_of(blocks: range) -> int:
    """Where a piece lies: its size divides a segment's, whatever the size of blocks."""
    return blocks.start // SEGMENT_BLOCKS


def by_segment(pieces: Iterable[Piece]) -> Iterator[tuple[int, list[Piece]]]:
    return ((segment, list(some)) for segment, some in itertools.groupby(pieces, lambda piece: segment_of(piece[0])))


@functools.cache
def segment_of_zeros(count: int) -> bytes:
    """The digest of a segment of so many blocks of zeros."""
    return segment_digest(bytes(count * DIGEST_BYTES))
