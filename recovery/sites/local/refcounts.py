"""Which clusters of a qcow2 file are used. A layer only grows: new clusters are taken at its end, none is given back.

So all that is new lies behind what was there, and a crash loses at most clusters at the end that nothing leads to.
"""

from __future__ import annotations

import struct

from agent.protocol.errors import StorageError
from recovery.sites.local.disk_file import DiskFile
from recovery.sites.local.layout import ENTRY_BYTES, PLACE, REFCOUNT_BYTES, REFCOUNT_TABLE, REFCOUNT_TABLE_FIELD, Layout

_USED = b"\0\1"
_FREE = b"\0\0"


class Refcounts:
    """Not for several threads. Clusters are counted from the file's begin. Raises StorageError, StorageFull."""

    def __init__(self, file: DiskFile, layout: Layout) -> None:
        self._file = file
        self._cluster_bytes = layout.cluster_bytes
        self._block_counts = layout.cluster_bytes // REFCOUNT_BYTES
        """Clusters that one block of refcounts is for."""
        self._table_place = layout.refcount_place
        self._table_clusters = layout.refcount_clusters
        entries = layout.refcount_clusters * layout.cluster_bytes // ENTRY_BYTES
        table = file.read_cached(layout.refcount_place, entries * ENTRY_BYTES)
        self._table = [place & PLACE for place in struct.unpack(f">{entries}Q", table)]
        self._blocks: dict[int, bytearray] = {}
        """Those that are written to."""
        self._dirty: set[int] = set()
        self._table_dirty = False
        self._moved_from: range | None = None
        """The clusters that the table has in the file, if it has outgrown them."""
        self.end = self._found_end()
        """The first cluster that is free, as all behind it are."""

    def allocate(self, count: int) -> int:
        """The first of so many clusters in a row; they count as free until `hold`."""
        while missing := self._missing(count):
            self._add_block(missing[0])
        first = self.end
        self.end += count
        return first

    def hold(self, first: int, count: int) -> None:
        """From now on these are used."""
        self._mark(first, count, _USED)

    def write(self) -> None:
        """What changed. When it returns, what is new may be led to by what is written next, but is not on stable
        storage yet."""
        for number in sorted(self._dirty):
            self._file.write_cached(self._table[number], self._blocks[number])
        if self._table_dirty:
            self._file.sync()
            self._write_table()
        self._dirty.clear()
        for number in sorted(self._blocks)[:-1]:
            del self._blocks[number]

    def _write_table(self) -> None:
        entries = self._table_clusters * self._cluster_bytes // ENTRY_BYTES
        table = self._table + [0] * (entries - len(self._table))
        self._file.write_cached(self._table_place, struct.pack(f">{entries}Q", *table))
        if self._moved_from is not None:
            self._file.sync()
            moved = REFCOUNT_TABLE.pack(self._table_place, self._table_clusters)
            self._file.write_cached(REFCOUNT_TABLE_FIELD, moved)
            self._file.sync()
            freed, self._moved_from = self._moved_from, None
            self._mark(freed.start, len(freed), _FREE)
            for number in sorted(self._dirty):
                self._file.write_cached(self._table[number], self._blocks[number])
        self._table_dirty = False

    def _missing(self, count: int) -> list[int]:
        """Blocks that there have to be before so many clusters can be taken."""
        last = (self.end + count - 1) // self._block_counts
        return [
            number
            for number in range(self.end // self._block_counts, last + 1)
            if number >= len(self._table) or not self._table[number]
        ]

    def _add_block(self, number: int) -> None:
        """It takes the next cluster itself, which it may well be the first to be for."""
        if number >= self._table_clusters * self._cluster_bytes // ENTRY_BYTES:
            self._grow_table()
            return
        self._table += [0] * (number + 1 - len(self._table))
        self._table[number] = self.end * self._cluster_bytes
        self._blocks[number] = bytearray(self._cluster_bytes)
        self._table_dirty = True
        self.end += 1
        self._mark(self.end - 1, 1, _USED)

    def _grow_table(self) -> None:
        """Twice as long, elsewhere; the header says so when all else has been written."""
        first = self._table_place // self._cluster_bytes
        outgrown = range(first, first + self._table_clusters)
        if self._moved_from is None:
            self._moved_from = outgrown
        else:
            self._mark(outgrown.start, len(outgrown), _FREE)
        self._table_dirty = True
        self._table_clusters *= 2
        first = self.allocate(self._table_clusters)
        self._table_place = first * self._cluster_bytes
        self._mark(first, self._table_clusters, _USED)

    def _mark(self, first: int, count: int, mark: bytes) -> None:
        while count:
            number, at = divmod(first, self._block_counts)
            here = min(count, self._block_counts - at)
            self._block(number)[at * REFCOUNT_BYTES : (at + here) * REFCOUNT_BYTES] = mark * here
            self._dirty.add(number)
            first, count = first + here, count - here

    def _block(self, number: int) -> bytearray:
        if number not in self._blocks:
            self._blocks[number] = self._file.read_cached(self._table[number], self._cluster_bytes)
        return self._blocks[number]

    def _found_end(self) -> int:
        for number in reversed(range(len(self._table))):
            if self._table[number]:
                used = self._file.read_cached(self._table[number], self._cluster_bytes).rstrip(b"\0")
                if used:
                    return number * self._block_counts + (len(used) + REFCOUNT_BYTES - 1) // REFCOUNT_BYTES
        raise StorageError(f"{self._file.path} has no refcounts", "restore it from a copy of the site's folder")
