"""Pieces: a volume is read and hashed a few blocks at a time, by a few workers at once. Push and pull share this."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator

from agent.protocol.digests import block_digest
from agent.protocol.grid import BlockGrid
from agent.volumes.source import aligned_buffer

PIECE_BLOCKS = 64
WORKERS = 4


def pieces_with_data(grid: BlockGrid, data_ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[range, bool]]:
    """The whole grid in pieces, and whether there is data in each: the holes of a sparse image need not be read.

    `data_ranges` are (offset, length), rising, in bytes."""
    data = iter(data_ranges)
    nothing = (grid.size_bytes, 0)
    offset, length = next(data, nothing)
    for blocks in grid.pieces(PIECE_BLOCKS):
        begin, size = grid.span(blocks)
        while offset + length <= begin and offset < grid.size_bytes:
            offset, length = next(data, nothing)
        yield blocks, offset < begin + size


def hash_piece(grid: BlockGrid, piece: memoryview) -> bytes:
    """The digests of the blocks that a piece consists of, one after the other."""
    size = grid.block_bytes
    return b"".join(block_digest(piece[at : at + size]) for at in range(0, len(piece), size))


async def share_out(
    pieces: Iterable[tuple[range, bool]], grid: BlockGrid, work: Callable[[range, bool, memoryview], Awaitable[None]]
) -> None:
    """Let a few workers, each with a buffer of its own, share the pieces, so that disk, processors and line are busy
    at once. Raises what the first worker to fail raised; the others are cancelled."""
    shared = iter(pieces)

    async def worker() -> None:
        buffer = aligned_buffer(PIECE_BLOCKS * grid.block_bytes)
        for blocks, has_data in shared:
            await work(blocks, has_data, buffer)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(WORKERS):
                group.create_task(worker())
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
