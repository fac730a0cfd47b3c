"""Where the clusters of a volume lie in a qcow2 file: the tables of level 1 and 2, a few of the latter in memory.

What is entered here is written when `write` is called, in an order that leaves the file right whenever it is cut off:
refcounts, then the tables that lead to what they count, then the table that leads to these.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from agent.protocol.errors import StorageError
from recovery.sites.local.disk_file import DiskFile
from recovery.sites.local.layout import COPIED, ENTRY_BYTES, PLACE, Layout
from recovery.sites.local.refcounts import Refcounts

MAX_TABLES = 16
"""Of level 2 that are in memory: 64 KiB each, for 512 MiB of volume."""
_ZERO = 1
_ABSENT = 0


@dataclass(frozen=True, slots=True)
class Run:
    """Clusters of the volume that follow one another, of one kind. `place`: where the first is in the file, and the
    others behind it; None: nowhere. `is_zero`: they read as zeros, wherever they are."""

    first: int
    count: int
    place: int | None
    is_zero: bool

    @property
    def has_data(self) -> bool:
        return self.place is not None and not self.is_zero

    @property
    def is_absent(self) -> bool:
        """They show what lies below."""
        return self.place is None and not self.is_zero


class Clusters:
    """Not for several threads. Raises StorageError, StorageFull."""

    def __init__(self, file: DiskFile, layout: Layout, refcounts: Refcounts) -> None:
        self._file = file
        self._layout = layout
        self._refcounts = refcounts
        entries = layout.l1_entries
        level1 = file.read_cached(layout.l1_place, entries * ENTRY_BYTES)
        self._level1 = list(struct.unpack(f">{entries}Q", level1))
        self._level1_dirty = False
        self._tables: OrderedDict[int, bytearray] = OrderedDict()
        self._dirty: set[int] = set()

    def runs(self, first: int, count: int) -> Iterator[Run]:
        """How these clusters of the volume lie, in order. Must be gone through before anything is entered."""
        start, kept, place = first, 0, 0
        kind = (False, False)  # is somewhere, is zero
        for index, entry in enumerate(self._entries(first, count), first):
            here = entry & PLACE
            if (here and not entry & COPIED) or entry & ~(COPIED | PLACE | _ZERO):
                raise StorageError(
                    f"{self._file.path} has clusters that are compressed or shared", "see qemu-img check"
                )
            follows = not here or here == place + kept * self._layout.cluster_bytes
            if kept and kind == (here != 0, bool(entry & _ZERO)) and follows:
                kept += 1
                continue
            if kept:
                yield Run(start, kept, place if kind[0] else None, kind[1])
            start, kept, place, kind = index, 1, here, (here != 0, bool(entry & _ZERO))
        if kept:
            yield Run(start, kept, place if kind[0] else None, kind[1])

    def make_tables(self, first: int, count: int) -> None:
        """Those that entries of these clusters are in: made before the data, they lie before it in the file, and a file
        that was cut short misses data, which is noticed, and not what leads to it."""
        for number in range(first // self._layout.table_entries, (first + count - 1) // self._layout.table_entries + 1):
            if not self._level1[number] & PLACE:
                self._table(number)

    def put(self, first: int, count: int, place: int) -> None:
        """These clusters have their data at `place` and behind it."""
        size = self._layout.cluster_bytes
        self._enter(first, range(place | COPIED, (place | COPIED) + count * size, size))

    def put_zero(self, run: Run) -> None:
        """The clusters of this run read as zeros; what place they have is kept for what may be written there."""
        size = self._layout.cluster_bytes
        if run.place is None:
            self._enter(run.first, [_ZERO] * run.count)
        else:
            begin = run.place | COPIED | _ZERO
            self._enter(run.first, range(begin, begin + run.count * size, size))

    def write(self) -> None:
        """What was entered. Data that it leads to has been written. Not on stable storage when it returns."""
        if not self._dirty and not self._level1_dirty:
            return
        self._refcounts.write()
        self._file.sync()
        for number in sorted(self._dirty):
            self._file.write_cached(self._level1[number] & PLACE, self._tables[number])
        self._dirty.clear()
        if self._level1_dirty:
            self._file.sync()
            self._file.write_cached(self._layout.l1_place, struct.pack(f">{len(self._level1)}Q", *self._level1))
            self._level1_dirty = False

    def _entries(self, first: int, count: int) -> Iterator[int]:
        while count:
            number, at = divmod(first, self._layout.table_entries)
            here = min(count, self._layout.table_entries - at)
            if self._level1[number] & PLACE:
                yield from struct.unpack_from(f">{here}Q", self._table(number), at * ENTRY_BYTES)
            else:
                yield from [_ABSENT] * here
            first, count = first + here, count - here

    def _enter(self, first: int, entries: range | list[int]) -> None:
        while entries:
            number, at = divmod(first, self._layout.table_entries)
            here = entries[: self._layout.table_entries - at]
            struct.pack_into(f">{len(here)}Q", self._table(number), at * ENTRY_BYTES, *here)
            self._dirty.add(number)
            first, entries = first + len(here), entries[len(here) :]

    def _table(self, number: int) -> bytearray:
        """A table of level 2; made where there is none."""
        if number in self._tables:
            self._tables.move_to_end(number)
            return self._tables[number]
        if len(self._tables) >= MAX_TABLES:
            if not any(kept not in self._dirty for kept in self._tables):
                self.write()
            del self._tables[next(kept for kept in self._tables if kept not in self._dirty)]
        place = self._level1[number] & PLACE
        if place:
            table = self._file.read_cached(place, self._layout.cluster_bytes)
        else:
            table = bytearray(self._layout.cluster_bytes)
            cluster = self._refcounts.allocate(1)
            self._refcounts.hold(cluster, 1)
            self._level1[number] = cluster * self._layout.cluster_bytes | COPIED
            self._level1_dirty = True
            self._dirty.add(number)
        self._tables[number] = table
        return table
