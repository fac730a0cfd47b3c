"""An open working state: one qcow2 file, written to by ourselves, on the chain that it stands on.

QEMU makes the empty file, merges and resizes it, and reads what is made here. Only this inner loop is ours: blocks go
from the caller's memory to the disk in the thread that brings them, where a qemu-storage-daemon for each volume costs
two copies, several turns between processes, and more memory than all the rest of a push.

What a crash leaves is a right qcow2 file that holds all that was flushed. While a file is open it is longer than what
it holds, so that one that was not closed is recognized: QEMU then looks it over and takes back what nothing leads to.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import mmap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from agent.protocol.errors import StorageError
from recovery.sites.local.clusters import Clusters, Run
from recovery.sites.local.disk_file import DiskFile
from recovery.sites.local.durable import forget_cached, storage_errors
from recovery.sites.local.layout import Layout, read_layout
from recovery.sites.local.qcow2 import layers, read_header, repair_leaks
from recovery.sites.local.qemu_locks import lock_for_writing
from recovery.sites.local.refcounts import Refcounts
from recovery.sites.local.snapshot_io import SnapshotIO

AHEAD_BYTES = 64 << 20
"""How much longer than what it holds an open file is made at a time, with a hole that takes no space."""
WRITE_BACK_BYTES = 256 << 20
"""After so much that is new the tables are written, so that a crash costs no more than that, flushed or not."""

_log = logging.getLogger(__name__)


class LayerIO:
    """VolumeIO on a qcow2 file. `on_close` is called once, when the file is free.

    Raises StorageError, StorageFull, ToolMissing; Conflict if another process has the file."""

    def __init__(self, path: Path, *, on_close: Callable[[], None] = lambda: None) -> None:
        self._path = path
        self._on_close = on_close
        self._changed = threading.Condition()
        """Held for what the tables say; never while data is read or written."""
        self._claimed: list[range] = []
        self._inside = 0
        self._below_lock = threading.Lock()
        self._below_io: SnapshotIO | None = None
        self._new_bytes = 0
        self._closed = False
        self._file, self._layout, self._refcounts = _opened(path)
        try:
            self._clusters = Clusters(self._file, self._layout, self._refcounts)
            self._room_bytes = 0
            self._make_room()
        except BaseException:
            self._file.close()
            raise

    @property
    def size_bytes(self) -> int:
        return self._layout.size_bytes

    def read(self, offset: int, length: int) -> bytearray:
        self._check_range(offset, length)
        content = bytearray(length)
        self.read_into(offset, memoryview(content))
        return content

    def read_into(self, offset: int, into: memoryview) -> None:
        self._check_range(offset, len(into))
        size = self._layout.cluster_bytes
        first = offset // size
        with self._in_use():
            with self._changed:
                runs = list(self._clusters.runs(first, -(-(offset + len(into)) // size) - first))
            for run in runs:
                begin = max(offset, run.first * size)
                part = into[begin - offset : (run.first + run.count) * size - offset]
                if run.has_data:
                    assert run.place is not None
                    self._file.read_into(run.place + begin - run.first * size, part)
                elif run.is_zero:
                    part[:] = bytes(len(part))
                else:
                    self._read_below(begin, part)

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data).cast("B")
        self._check_range(offset, len(view))
        with self._in_use():
            for begin, length, is_whole in self._parts(offset, len(view)):
                part = view[begin - offset : begin - offset + length]
                if is_whole:
                    self._write_clusters(begin // self._layout.cluster_bytes, part)
                else:
                    self._write_within(begin, part)

    def zero(self, offset: int, length: int) -> None:
        self._check_range(offset, length)
        with self._in_use():
            for stretch, stretch_bytes in self._stretches(offset, length):
                for begin, part_bytes, is_whole in self._parts(stretch, stretch_bytes):
                    if is_whole:
                        self._zero_clusters(begin // self._layout.cluster_bytes, part_bytes)
                    else:
                        self._write_within(begin, memoryview(bytes(part_bytes)))

    def flush(self) -> None:
        with self._in_use(), self._changed:
            self._write_tables()
            self._file.sync()

    def close(self) -> None:
        with self._changed:
            if self._closed:
                return
            self._closed = True  # nobody gets in any more, and who is inside may go on to the end
            self._changed.wait_for(lambda: not self._inside)
            try:
                self._clusters.write()
                self._file.sync()  # else it would not be known for one that was not closed
                self._file.resize(self._refcounts.end * self._layout.cluster_bytes)
            except StorageError as error:
                _log.warning("what was written to %s and not flushed is lost: %s", self._path, error)
            self._file.close()
        if self._below_io is not None:
            self._below_io.close()
        self._on_close()

    # --- data ---

    def _write_clusters(self, first: int, data: memoryview) -> None:
        """Whole clusters; the last may end where the volume does."""
        size = self._layout.cluster_bytes
        with self._claim(first, -(-len(data) // size)) as runs:
            for run in runs:
                part = data[(run.first - first) * size : (run.first - first + run.count) * size]
                if run.has_data:
                    assert run.place is not None
                    self._file.write(run.place, part)
                else:
                    self._fill(run, part)

    def _write_within(self, offset: int, data: memoryview) -> None:
        """Part of one cluster."""
        size = self._layout.cluster_bytes
        index, within = divmod(offset, size)
        with self._claim(index, 1) as runs:
            (run,) = runs
            if run.has_data:
                assert run.place is not None
                self._file.write(run.place + within, data)
                return
            whole = memoryview(mmap.mmap(-1, size))
            if run.is_absent:
                self._read_below(index * size, whole[: self._layout.size_bytes - index * size])
            whole[within : within + len(data)] = data
            self._fill(run, whole)

    def _fill(self, run: Run, data: memoryview) -> None:
        """Give claimed clusters their data: first that, then the entries that lead to it."""
        size = self._layout.cluster_bytes
        place = run.place
        if place is None:
            with self._changed:
                self._clusters.make_tables(run.first, run.count)
                place = self._refcounts.allocate(run.count) * size
                self._make_room()
        self._file.write(place, data)
        if len(data) % size:  # the volume ends within the cluster: what is behind must be zeros, should it grow
            self._file.write(place + len(data), memoryview(bytes(-len(data) % size)))
        with self._changed:
            if run.place is None:
                self._refcounts.hold(place // size, run.count)
            self._clusters.put(run.first, run.count, place)
            self._new_bytes += len(data)
            if self._new_bytes >= WRITE_BACK_BYTES:
                self._write_tables()

    def _zero_clusters(self, first: int, length: int) -> None:
        size = self._layout.cluster_bytes
        with self._claim(first, -(-length // size)) as runs:
            for run in runs:
                if run.is_zero or (run.is_absent and not self._layout.has_backing):
                    continue
                with self._changed:
                    self._clusters.put_zero(run)
                    self._make_room()  # for tables that were made
                if run.place is not None:
                    self._file.punch(run.place, run.count * size)

    def _read_below(self, offset: int, into: memoryview) -> None:
        """What the layers below show; zeros where there are none, and behind their end."""
        below = self._below()
        here = max(0, min(len(into), below.size_bytes - offset)) if below is not None else 0
        if below is not None and here:
            below.read_into(offset, into[:here])
        into[here:] = bytes(len(into) - here)

    def _below(self) -> SnapshotIO | None:
        """Opened when it is first needed: most pushes write whole clusters, and read nothing."""
        if not self._layout.has_backing:
            return None
        with self._below_lock:
            if self._below_io is None:
                found = layers(self._path)[1:]
                self._below_io = SnapshotIO(found, read_header(found[0]).size_bytes, on_close=lambda: None)
            return self._below_io

    # --- tables ---

    @contextlib.contextmanager
    def _in_use(self) -> Iterator[None]:
        """The file is not closed meanwhile: its descriptor could be another file's then."""
        with self._changed:
            if self._closed:
                raise StorageError(f"{self._path.name} cannot be used: it was closed")
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextlib.contextmanager
    def _claim(self, first: int, count: int) -> Iterator[list[Run]]:
        """Clusters that nobody else gives a place meanwhile, and how they lie."""
        mine = range(first, first + count)
        with self._changed:
            self._changed.wait_for(functools.partial(self._unclaimed, mine))
            runs = list(self._clusters.runs(first, count))
            self._claimed.append(mine)
        try:
            yield runs
        finally:
            with self._changed:
                self._claimed.remove(mine)
                self._changed.notify_all()

    def _unclaimed(self, mine: range) -> bool:
        return all(mine.start >= other.stop or other.start >= mine.stop for other in self._claimed)

    def _write_tables(self) -> None:
        self._clusters.write()
        self._new_bytes = 0

    def _make_room(self) -> None:
        used_bytes = self._refcounts.end * self._layout.cluster_bytes
        if used_bytes >= self._room_bytes:
            self._room_bytes = used_bytes + AHEAD_BYTES
            self._file.resize(self._room_bytes)

    def _stretches(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """The range in parts that have one table of level 2 each: a disk that shrinks or grows may do so by TiBs."""
        most, end = self._layout.table_entries * self._layout.cluster_bytes, offset + length
        while offset < end:
            stop = min(end, (offset // most + 1) * most)
            yield offset, stop - offset
            offset = stop

    def _parts(self, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
        """Offset, length, and whether it is whole clusters: at most three, of which one is."""
        size, end = self._layout.cluster_bytes, offset + length
        begin = min(end, -(-offset // size) * size)
        stop = end if end == self._layout.size_bytes else max(begin, end // size * size)
        for first, last, is_whole in ((offset, begin, False), (begin, stop, True), (stop, end, False)):
            if first < last:
                yield first, last - first, is_whole

    def _check_range(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size_bytes:
            raise StorageError(f"{length} bytes at {offset} lie outside {self._path.name} ({self.size_bytes} bytes)")


def _opened(path: Path) -> tuple[DiskFile, Layout, Refcounts]:
    """With QEMU's lock on it. One that was not closed is looked over by QEMU, which needs that lock meanwhile."""
    file, layout, refcounts = _locked(path)
    if file.size_bytes > refcounts.end * layout.cluster_bytes:
        file.close()
        repair_leaks(path)
        file, layout, refcounts = _locked(path)
        try:
            # behind what is used there is what was being written: new clusters have to begin as zeros
            file.resize(refcounts.end * layout.cluster_bytes)
        except StorageError:
            file.close()
            raise
    return file, layout, refcounts


def _locked(path: Path) -> tuple[DiskFile, Layout, Refcounts]:
    file = DiskFile(path, writable=True)
    try:
        lock_for_writing(file.fileno(), path.name)
        with storage_errors(f"read {path}"):
            forget_cached(path)
        layout = read_layout(file)
        return file, layout, Refcounts(file, layout)
    except BaseException:
        file.close()
        raise
