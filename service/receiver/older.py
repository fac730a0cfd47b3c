"""Older blocks: what was read for its sums waits where it was read to, until a patch is put upon it.

Reading is what a day of changes waits for: these blocks are five times as much as what changed in them. A patch comes
soon after the sums that it was made by, so what was read for them is kept for a moment, in memory that is bounded for
all pushes together, and used up by the patch: no copy is made, and no block is kept twice for long. What found no
room is read again. Blocks that lie near one another are read at once.
"""

from __future__ import annotations

import logging
import mmap
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from agent.protocol.errors import StorageError
from agent.protocol.grid import BlockGrid
from service.receiver.head import Head

READ_BYTES = 4 << 20
"""What is read at once."""
GAP_BYTES = 256 << 10
"""What lies between two older blocks is read with them up to here: one read more costs about as much."""
KEPT_RUNS = 24
"""So many reads are kept."""
KEPT_SECONDS = 2.0
"""A patch that has not come after so long may never come: the memory is for others."""
QUIET_SECONDS = 60.0
"""Between two lines in the log about what cannot be read."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Run:
    """Blocks of a head that lie next to one another in memory: those at `positions` of what was asked for, and perhaps
    others in between. Block `first` begins where `memory` does, which is writable."""

    grid: BlockGrid
    positions: range
    first: int
    memory: memoryview

    def block(self, index: int) -> memoryview:
        return self.blocks(range(index, index + 1))

    def blocks(self, blocks: range) -> memoryview:
        """The content of consecutive blocks."""
        at = self.grid.offset(blocks.start - self.first)
        return self.memory[at : at + self.grid.span(blocks)[1]]


@dataclass(eq=False, slots=True)
class _Kept:
    """Memory, and what was read into it: of the blocks from `first` on those in `waiting` were not used yet."""

    memory: memoryview = field(default_factory=lambda: memoryview(mmap.mmap(-1, READ_BYTES)))
    head: Head | None = None
    first: int = 0
    waiting: set[int] = field(default_factory=set)
    users: int = 0
    used_at: float = 0.0


class OlderBlocks:
    """For many threads and sessions. What cannot be read is left out: blocks can do without, and a push has to go on
    where the disk has lost what is about to be replaced."""

    def __init__(self) -> None:
        self._quiet_until = 0.0
        self._lock = threading.Lock()
        self._kept: list[_Kept] = []
        self._own = threading.local()

    def read(self, head: Head, indices: Sequence[int]) -> Iterator[Run]:
        """What was in the place of these blocks, which rise, some at a time; a run's memory is the caller's until the
        next is asked for. They are kept for `take`, as they are then."""
        for positions in near(head.grid, indices):
            kept = self._room()
            try:
                run = self._read(head, indices, positions, self._memory() if kept is None else kept.memory)
                if run is not None:
                    yield run
            except BaseException:
                self._fill(kept, None, 0, ())
                raise
            if run is None:
                self._fill(kept, None, 0, ())
            else:
                self._fill(kept, head, run.first, indices[positions.start : positions.stop])

    def take(self, head: Head, indices: Sequence[int]) -> Iterator[Run]:
        """The same, for the caller to write to. None of them is kept any more."""
        with self._lock:
            of_block = {index: kept for kept in self._kept if kept.head is head for index in kept.waiting}
            found = [of_block.get(index) for index in indices]
            for index, kept in zip(indices, found, strict=True):
                if kept is not None:
                    kept.waiting.discard(index)
                    kept.users += 1
        start = 0
        try:
            for stop in range(1, len(indices) + 1):
                kept = found[start]
                if stop < len(indices) and found[stop] is kept:
                    continue
                if kept is not None:
                    yield Run(head.grid, range(start, stop), kept.first, kept.memory)
                    self._release(found[start:stop])
                else:
                    for some in near(head.grid, indices[start:stop]):
                        positions = range(start + some.start, start + some.stop)
                        run = self._read(head, indices, positions, self._memory())
                        if run is not None:
                            yield run
                start = stop
        finally:
            self._release(found[start:])

    def forget(self, head: Head) -> None:
        """Its push has ended, and nobody reads any more."""
        with self._lock:
            self._kept = [kept for kept in self._kept if kept.head is not head]

    def _read(self, head: Head, indices: Sequence[int], positions: range, memory: memoryview) -> Run | None:
        blocks = range(indices[positions.start], indices[positions.stop - 1] + 1)
        try:
            head.read_older_into(blocks, memory[: head.grid.span(blocks)[1]])
        except StorageError as error:
            if time.monotonic() >= self._quiet_until:
                self._quiet_until = time.monotonic() + QUIET_SECONDS
                log.warning("what should be patched in %s goes whole: %s", head.key.server_id, error)
            return None
        return Run(head.grid, positions, blocks.start, memory)

    def _room(self) -> _Kept | None:
        """Memory that nobody needs, or will need; the caller is its user until `_fill`."""
        now = time.monotonic()
        with self._lock:
            for kept in self._kept:
                if not kept.users and (not kept.waiting or now - kept.used_at > KEPT_SECONDS):
                    kept.waiting.clear()
                    break
            else:
                if len(self._kept) >= KEPT_RUNS:
                    return None
                kept = _Kept()
                self._kept.append(kept)
            kept.users += 1
            return kept

    def _fill(self, kept: _Kept | None, head: Head | None, first: int, indices: Sequence[int]) -> None:
        if kept is None:
            return
        with self._lock:
            kept.users -= 1
            kept.head, kept.first, kept.waiting, kept.used_at = head, first, set(indices), time.monotonic()

    def _release(self, used: Sequence[_Kept | None]) -> None:
        with self._lock:
            for kept in used:
                if kept is not None:
                    kept.users -= 1

    def _memory(self) -> memoryview:
        """This thread's own, aligned, so that the disk can write to it."""
        memory: memoryview | None = getattr(self._own, "memory", None)
        if memory is None:
            memory = self._own.memory = memoryview(mmap.mmap(-1, READ_BYTES))
        return memory


def near(grid: BlockGrid, indices: Sequence[int]) -> Iterator[range]:
    """Positions of blocks that are worth one read, in order."""
    most, gap = READ_BYTES // grid.block_bytes, 1 + GAP_BYTES // grid.block_bytes
    start = 0
    for stop in range(1, len(indices) + 1):
        if stop < len(indices) and indices[stop] - indices[stop - 1] <= gap and indices[stop] - indices[start] < most:
            continue
        yield range(start, stop)
        start = stop
