"""Reading a volume back, as fast as its disk gives it: large reads in a few threads, which hash what they read.

Where digests say zero and the site knows that there is nothing, nothing is read. A block that should hold something
is read whatever the site says about it.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from agent.protocol.digests import ZERO_DIGEST, DigestMap, block_digest
from agent.protocol.errors import StorageError, TransportError
from agent.protocol.grid import BlockGrid, consecutive
from recovery.sites.contract import Extent, VolumeIO

READ_BYTES = 4 << 20
WINDOW_BYTES = 8 << 30
"""For so much at a time the site is asked where there is data: bounds the memory for the answer."""
MOST_DAMAGED = 65_536
"""With so many damaged blocks a volume is not read any further."""
THREADS = min(4, os.cpu_count() or 1)

DataIn = Callable[[Extent], list[Extent]]
Take = Callable[[range, memoryview], None]


class Stop(threading.Event):
    """Set when nobody waits for the result any more."""

    def check(self) -> None:
        if self.is_set():
            raise TransportError("the verification was ended: whoever asked for it has left", "ask again")


@dataclass(slots=True)
class Readback:
    """`damaged`: rising block numbers, `unreadable` of them could not even be read, `reason` says why not."""

    damaged: list[int] = field(default_factory=list)
    unreadable: int = 0
    reason: str = ""
    read_bytes: int = 0

    @property
    def whole(self) -> bool:
        """Was everything looked at?"""
        return len(self.damaged) < MOST_DAMAGED


def compare(io: VolumeIO, digests: DigestMap, data_in: DataIn, progress: Callable[[int], None], stop: Stop) -> Readback:
    """Every block of a volume against its digest. `progress` gets bytes done. Raises TransportError when stopped."""
    found = Readback()
    lock = threading.Lock()

    def take(blocks: range, data: memoryview) -> None:
        wrong = _differing(digests, blocks, data)
        with lock:
            found.read_bytes += len(data)
            found.damaged += wrong

    def fail(block: int, error: StorageError) -> None:
        with lock:
            found.damaged.append(block)
            found.unreadable += 1
            found.reason = found.reason or error.message

    _read(io, digests.grid, _wanted(digests, data_in, progress, lambda: found.whole), take, fail, stop)
    found.damaged.sort()
    return found


def measure(io: VolumeIO, into: DigestMap, data_in: DataIn, progress: Callable[[int], None], stop: Stop) -> int:
    """Enter the digest of every block that there is into a new map. Returns the bytes read. Raises StorageError."""
    grid = into.grid
    failures: list[StorageError] = []
    done = [0]

    def take(blocks: range, data: memoryview) -> None:
        into.set_run(blocks, b"".join(_digests(grid, blocks, data)))
        done[0] += len(data)  # a hint for people: two threads at once may lose a piece

    _read(io, grid, _wanted(into, data_in, progress, lambda: not failures), take, lambda _, e: failures.append(e), stop)
    if failures:
        raise failures[0]
    return done[0]


def _read(
    io: VolumeIO,
    grid: BlockGrid,
    wanted: Iterator[range],
    take: Take,
    fail: Callable[[int, StorageError], None],
    stop: Stop,
) -> None:
    lock = threading.Lock()

    def work() -> None:
        buffer = memoryview(mmap.mmap(-1, max(READ_BYTES, grid.block_bytes)))  # aligned, as direct I/O wants it
        while not stop.is_set():
            with lock:
                blocks = next(wanted, None)
            if blocks is None:
                return
            offset, length = grid.span(blocks)
            try:
                io.read_into(offset, buffer[:length])
            except StorageError:
                _read_singly(io, grid, blocks, buffer, take, fail)
            else:
                take(blocks, buffer[:length])

    with ThreadPoolExecutor(THREADS, "verify") as threads:
        for worker in [threads.submit(work) for _ in range(THREADS)]:
            worker.result()
    stop.check()


def _read_singly(
    io: VolumeIO,
    grid: BlockGrid,
    blocks: range,
    buffer: memoryview,
    take: Take,
    fail: Callable[[int, StorageError], None],
) -> None:
    for block in blocks:
        data = buffer[: grid.length(block)]
        try:
            io.read_into(grid.offset(block), data)
        except StorageError as error:
            fail(block, error)
        else:
            take(range(block, block + 1), data)


def _wanted(
    digests: DigestMap, data_in: DataIn, progress: Callable[[int], None], go_on: Callable[[], bool]
) -> Iterator[range]:
    """What has to be read: blocks that should hold something, and blocks that should not, but may."""
    grid = digests.grid
    at_once = max(1, READ_BYTES // grid.block_bytes)
    for window in grid.pieces(max(1, WINDOW_BYTES // grid.block_bytes)):
        held: set[int] | None = None
        for start in range(window.start, window.stop, at_once):
            if not go_on():
                return
            piece = range(start, min(start + at_once, window.stop))
            progress(grid.offset(start))
            if ZERO_DIGEST not in digests.run(piece):
                yield piece
                continue
            if held is None:
                held = _held(grid, window, data_in)
            some = tuple(block for block in piece if block in held or digests[block] != ZERO_DIGEST)
            for first, last in consecutive(some):
                yield range(some[first], some[last - 1] + 1)
    progress(grid.size_bytes)


def _held(grid: BlockGrid, window: range, data_in: DataIn) -> set[int]:
    try:
        extents = data_in(Extent(*grid.span(window)))
    except StorageError:  # then it may be anywhere
        return set(window)
    found: set[int] = set()
    for blocks in grid.covering(((extent.offset, extent.length) for extent in extents), len(window)):
        found.update(blocks)
    return found


def _differing(digests: DigestMap, blocks: range, data: memoryview) -> list[int]:
    sums = _digests(digests.grid, blocks, data)
    if b"".join(sums) == digests.run(blocks):
        return []
    return [block for block, found in zip(blocks, sums, strict=True) if found != digests[block]]


def _digests(grid: BlockGrid, blocks: range, data: memoryview) -> list[bytes]:
    size = grid.block_bytes
    return [block_digest(data[at * size : (at + 1) * size]) for at in range(len(blocks))]
