"""Head: the open working state of one replica volume, with the digest of every block that it holds.

The map says only what was proven: a block's digest is entered after its bytes were checked and written. When that
cannot be said any more (a write failed half way) the head is `doubtful` and must be opened again, which reads it back.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import threading
from collections.abc import Iterator
from pathlib import Path

from agent.protocol.digests import DIGEST_BYTES, ZERO_DIGEST, DigestMap, block_digest
from agent.protocol.errors import StorageError, StorageFull
from agent.protocol.frames import Answer, Frame
from agent.protocol.grid import BlockGrid, consecutive
from recovery.sites.contract import Extent, Site, VolumeIO, VolumeKey

READ_BACK_BLOCKS = 64


class Unknown(enum.Enum):
    UNKNOWN = enum.auto()


UNKNOWN = Unknown.UNKNOWN
Base = tuple[BlockGrid, bytes] | Unknown | None
"""What a working state stands on: a point's grid and digests, something unknown, or nothing: zeros."""


class Head:
    """Calls block; they may come from several threads, and blocks under way are never written by two at once."""

    def __init__(self, key: VolumeKey, grid: BlockGrid, io: VolumeIO, digests: DigestMap) -> None:
        self.key = key
        self.grid = grid
        self.digests = digests
        self.doubtful = False
        self._io = io
        self._changed = threading.Condition()
        self._under_way: list[frozenset[int]] = []

    @classmethod
    def open(cls, site: Site, key: VolumeKey, grid: BlockGrid, base: Base, cache: Path) -> Head:
        """Open the working state, made to fit `grid`, on top of the volume's newest snapshot, which `base` describes.

        What the working state holds beyond it (a push that was cut) is read back, never assumed; so is everything
        where `base` is unknown. `cache` is the file for the digest map."""
        site.make_volume(key, grid.size_bytes)
        doubts = [extent for extent in site.changes(key) if extent.offset < grid.size_bytes]
        digests = _new_map(cache, grid)
        if base is UNKNOWN:
            doubts = [Extent(0, grid.size_bytes)]
        elif base is not None:
            doubts += _take_over(digests, *base)
        io = site.open_volume(key)
        try:
            head = cls(key, grid, io, digests)
            head._read_back(doubts)
        except BaseException:
            io.close()
            raise
        return head

    @classmethod
    def reopen(cls, site: Site, key: VolumeKey, grid: BlockGrid, cache: Path) -> Head:
        """Open the working state as close() left it, with the map in `cache`: nothing is read back, which for what a
        cut push brought can take longer than an agent waits. Only where nobody else had either meanwhile."""
        digests = _map(cache, grid)
        return cls(key, grid, site.open_volume(key), digests)

    def offer(self, frame: Frame) -> bytes:
        """An Answer for each block offered. Blocks that are to be zero are made zero at once."""
        frame.check_against(self.grid)
        answers = bytearray(len(frame.indices))
        zeros = []
        for position, index in enumerate(frame.indices):
            digest = frame.digest(position)
            if digest == self.digests[index]:
                continue
            if digest == ZERO_DIGEST:
                zeros.append(index)
            else:
                answers[position] = Answer.LACKING
        if zeros:
            self._make_zero(tuple(zeros))
        return bytes(answers)

    def write(self, frame: Frame) -> int:
        """Check every block of a BLOCKS frame, then write them. Returns how many. Raises BadFrame, DigestMismatch."""
        payload = frame.verified(self.grid)
        size = self.grid.block_bytes
        with self._alone_with(frame.indices):
            for start, stop in consecutive(frame.indices):
                # blocks that follow one another on the volume do so in the payload as well
                self._io.write(self.grid.offset(frame.indices[start]), payload[start * size : stop * size])
                self.digests.set_run(
                    range(frame.indices[start], frame.indices[stop - 1] + 1),
                    frame.digests[start * DIGEST_BYTES : stop * DIGEST_BYTES],
                )
        return len(frame.indices)

    def put(self, index: int, block: bytes | bytearray | memoryview) -> bool:
        """Take in one block read at the site itself; False if it is what the head holds already."""
        digest = block_digest(block)
        if digest == self.digests[index]:
            return False
        if digest == ZERO_DIGEST:
            self._make_zero((index,))
            return True
        with self._alone_with((index,)):
            self._io.write(self.grid.offset(index), block)
            self.digests[index] = digest
        return True

    def flush(self) -> None:
        self._io.flush()

    def close(self) -> None:
        self._io.close()
        self.digests.close()

    def _make_zero(self, indices: tuple[int, ...]) -> None:
        with self._alone_with(indices):
            for start, stop in consecutive(indices):
                blocks = range(indices[start], indices[stop - 1] + 1)
                self._io.zero(*self.grid.span(blocks))
                self.digests.set_run(blocks, bytes(len(blocks) * DIGEST_BYTES))

    @contextlib.contextmanager
    def _alone_with(self, indices: tuple[int, ...]) -> Iterator[None]:
        """Wait until nobody else writes any of these blocks, so that bytes and digests change in the same order."""
        mine = frozenset(indices)
        with self._changed:
            self._changed.wait_for(lambda: all(mine.isdisjoint(other) for other in self._under_way))
            self._under_way.append(mine)
        try:
            yield
        except BaseException:
            self.doubtful = True
            raise
        finally:
            with self._changed:
                self._under_way.remove(mine)
                self._changed.notify_all()

    def _read_back(self, extents: list[Extent]) -> None:
        for blocks in self.grid.covering(((extent.offset, extent.length) for extent in extents), READ_BACK_BLOCKS):
            offset, length = self.grid.span(blocks)
            data = memoryview(self._io.read(offset, length))
            for index in blocks:
                at = self.grid.offset(index) - offset
                self.digests[index] = block_digest(data[at : at + self.grid.length(index)])


def _new_map(cache: Path, grid: BlockGrid) -> DigestMap:
    with _cache_errors(cache):
        cache.parent.mkdir(parents=True, exist_ok=True)
        cache.unlink(missing_ok=True)
    return _map(cache, grid)


def _map(cache: Path, grid: BlockGrid) -> DigestMap:
    with _cache_errors(cache):
        return DigestMap.open(cache, grid)


@contextlib.contextmanager
def _cache_errors(cache: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        cache.unlink(missing_ok=True)  # whatever part of its space it got
        kind = StorageFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else StorageError
        raise kind(f"the receiver's digest map {cache} cannot be made: {error.strerror}") from error


def _take_over(digests: DigestMap, grid: BlockGrid, content: bytes) -> list[Extent]:
    """Begin with a point's digests; returns what they cannot tell about a volume of another size or grain."""
    if grid.block_bytes != digests.grid.block_bytes:
        return [Extent(0, digests.grid.size_bytes)]
    shared = range(min(grid.count, digests.grid.count))
    digests.set_run(shared, content[: len(shared) * DIGEST_BYTES])
    if grid.size_bytes == digests.grid.size_bytes:
        return []
    edge = digests.grid.offset(shared[-1])
    return [Extent(edge, digests.grid.length(shared[-1]))]
