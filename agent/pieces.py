"""Pieces: a volume is read and hashed a few blocks at a time, by a few workers at once. Push and pull share this."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any, TypeVar

from agent.protocol.digests import block_digest
from agent.protocol.grid import BlockGrid
from agent.volumes.source import aligned_buffer

PIECE_BYTES = 4 << 20
"""What is read, hashed and packed at a time."""
WORKERS = 8

T = TypeVar("T")


def pieces_with_data(grid: BlockGrid, data_ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[range, bool]]:
    """The whole grid in pieces, and whether there is data in each: the holes of a sparse image need not be read.

    `data_ranges` are (offset, length), rising, in bytes."""
    data = iter(data_ranges)
    nothing = (grid.size_bytes, 0)
    offset, length = next(data, nothing)
    for blocks in grid.pieces(piece_blocks(grid)):
        begin, size = grid.span(blocks)
        while offset + length <= begin and offset < grid.size_bytes:
            offset, length = next(data, nothing)
        yield blocks, offset < begin + size


def piece_blocks(grid: BlockGrid) -> int:
    """How many blocks make a piece."""
    return max(1, PIECE_BYTES // grid.block_bytes)


def hash_piece(grid: BlockGrid, piece: memoryview) -> bytes:
    """The digests of the blocks that a piece consists of, one after the other."""
    size = grid.block_bytes
    return b"".join(block_digest(piece[at : at + size]) for at in range(0, len(piece), size))


class _Shared(Iterator[T]):
    """An iterator that any thread may take from."""

    def __init__(self, items: Iterable[T]) -> None:
        self._items = iter(items)
        self._lock = threading.Lock()

    def __next__(self) -> T:
        with self._lock:
            return next(self._items)


async def share_out(
    pieces: Iterable[T], work: Callable[[Iterator[T], memoryview], Coroutine[Any, Any, None]], workers: int = WORKERS
) -> None:
    """Let a few workers take pieces from one iterator, each with an aligned buffer of its own for PIECE_BYTES, so that
    disk, processors and line are busy at once. The iterator may be taken from in threads. Raises as side_by_side."""
    shared = _Shared(pieces)
    await side_by_side([work(shared, aligned_buffer(PIECE_BYTES)) for _ in range(workers)])


async def side_by_side(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Do all of them. Raises what the first to fail raised; the others are cancelled."""
    try:
        async with asyncio.TaskGroup() as group:
            for work in works:
                group.create_task(work)
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
