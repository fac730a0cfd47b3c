"""Head: the open working state of one replica volume, with the digest of every block that it holds.

The map says only what was proven: a block's digest is entered after its bytes were checked and written. When that
cannot be said any more (a write or a flush failed) the head is `doubtful` and must be opened again, which reads it
back.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from agent.protocol.digests import DIGEST_BYTES, ZERO_DIGEST, DigestMap, block_digest
from agent.protocol.frames import Answer, Frame
from agent.protocol.grid import BlockGrid, consecutive
from recovery.sites.contract import Site, VolumeIO, VolumeKey
from service.receiver.digest_caches import open_map


class Head:
    """Calls block; they may come from several threads, and blocks under way are never written by two at once."""

    def __init__(
        self,
        key: VolumeKey,
        grid: BlockGrid,
        io: VolumeIO,
        digests: DigestMap,
        open_older: Callable[[], VolumeIO | None] = lambda: None,
    ) -> None:
        """`open_older` opens the snapshot that the working state stands on, if there is one."""
        self.key = key
        self.grid = grid
        self.digests = digests
        self.doubtful = False
        self._io = io
        self._changed = threading.Condition()
        self._under_way: list[frozenset[int]] = []
        self._open_older = open_older
        self._older: VolumeIO | None = None
        self._older_lock = threading.Lock()
        self._older_opened = False

    @classmethod
    def reopen(cls, site: Site, key: VolumeKey, grid: BlockGrid, cache: Path) -> Head:
        """Open the working state, whose map in `cache` is right: standing.py sees to that."""
        digests = open_map(cache, grid)
        return cls(key, grid, site.open_volume(key), digests, functools.partial(_newest_snapshot, site, key))

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

    def read_into(self, blocks: range, into: memoryview) -> None:
        """What consecutive blocks hold now, which may be in the middle of being written: not proven."""
        self._io.read_into(self.grid.offset(blocks.start), into)

    def read_older_into(self, blocks: range, into: memoryview) -> None:
        """What consecutive blocks held when the working state was begun, where that is quick to read; else what they
        hold now. Nothing is proven: for what a patch is put upon, whose result is."""
        with self._older_lock:
            if not self._older_opened:
                self._older, self._older_opened = self._open_older(), True
        offset, length = self.grid.span(blocks)
        if self._older is not None and offset + length <= self._older.size_bytes:
            self._older.read_into(offset, into)
        else:
            self._io.read_into(offset, into)

    def take(self, blocks: range, digests: bytes, content: memoryview) -> None:
        """Write consecutive blocks whose content the caller has proven to have these digests."""
        with self._alone_with(tuple(blocks)):
            self._io.write(self.grid.offset(blocks.start), content)
            self.digests.set_run(blocks, digests)

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
        try:
            self._io.flush()
        except BaseException:
            self.doubtful = True  # the next one would succeed: what could not be written is told once, and forgotten
            raise

    def close(self) -> None:
        with self._older_lock:
            if self._older is not None:
                self._older.close()
            self._older, self._older_opened = None, True
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


def _newest_snapshot(site: Site, key: VolumeKey) -> VolumeIO | None:
    snapshots = site.snapshots(key)
    return site.open_snapshot(key, snapshots[-1]) if snapshots else None
