"""Following the changes of one disk from `open_tracker` to `close`.

How to use it so that nothing is missed:

1. open the tracker, then read the whole source;
2. as often as wanted: `take()`, and only then read the ranges that it returned (always take, then read);
3. stop all writes (freeze), `take()` once more, read the last ranges. The copy is the source of that instant.

All reads must come from the medium (O_DIRECT): the page cache of a disk's device file does not see what its
filesystem writes.

Why nothing is missed: the program marks a request when it is complete, so after the medium changed. `take()` first
puts an empty map into the slot; the kernel returns from that only when no program still stores into the old one.
A write whose mark is in the old map was on the medium before, so the read that follows gets it. Every other write
leaves its mark in the new map, for the next `take()`. Clearing marks in place could not promise that; what is cleared
here is the old map, once nobody writes to it.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from dataclasses import dataclass
from typing import Self

from agent.tracking import bpf
from agent.tracking.btf import Btf
from agent.tracking.changemap import PAGE_BYTES, Layout, Range, drain, within
from agent.tracking.disk import TrackedDisk, Untracked, locate
from agent.tracking.ledger import COUNTER_STRIDE_BYTES, Ledger
from agent.tracking.program import TRACEPOINT, Offsets, change_program

__all__ = ["ChangeTracker", "Taken", "Untracked", "open_tracker"]

# The kernel does not run a program that is already running on that CPU (an interrupt came in between). A task, a
# soft interrupt and a hard interrupt can nest, so of three copies one always runs; their counters are watched too.
_COPIES = 3


@dataclass(frozen=True, slots=True)
class Taken:
    """What changed since the `take()` before (the first: since the tracker was opened), as (offset, length) in bytes.

    Ranges are in the source's own coordinates, rising, not touching, on block boundaries but for the source's end.
    With `lost` set they are the whole source: the reason why something may have changed unseen. Reading the whole
    source after that makes good for it: later answers count from here on.
    """

    ranges: list[Range]
    lost: str | None = None


class ChangeTracker:
    """Marks what is written to a disk while it is open. Not for several threads at once. Closing it twice is fine.

    The two maps take turns: making one needs memory, which take() must not wait for while filesystems are frozen.
    """

    def __init__(self, disk: TrackedDisk, block_bytes: int) -> None:
        """Raises OSError, LookupError or ValueError where this kernel or these rights do not allow tracking."""
        self._disk = disk
        self._block_bytes = block_bytes
        self._layout = Layout(disk.disk_bytes)
        self._resources = contextlib.ExitStack()
        try:
            self._open()
        except BaseException:
            self._resources.close()
            raise

    def _open(self) -> None:
        offsets = Offsets.of(Btf.of_kernel())
        self._active = self._make_map()
        self._spare = self._make_map()
        self._slot = self._own(bpf.create_slot(self._active[0]))
        bpf.put_in_slot(self._slot, self._active[0])
        self._ledger = self._resources.enter_context(Ledger(self._disk.stat, _COPIES))
        self._programs = [self._load(offsets, copy) for copy in range(_COPIES)]
        for program in self._programs:
            self._own(bpf.attach_raw_tracepoint(program, TRACEPOINT))
        self._misses_before = self._misses()
        self._ledger.begin()

    def _load(self, offsets: Offsets, copy: int) -> int:
        code = change_program(
            offsets,
            self._disk.major,
            self._disk.minor,
            self._layout,
            discard_segments=self._disk.discard_segments,
            slot_map=self._slot,
            counter_map=self._ledger.map,
            counter_at=copy * COUNTER_STRIDE_BYTES,
        )
        return self._own(bpf.load_program(code))

    def _own(self, descriptor: int) -> int:
        self._resources.callback(os.close, descriptor)
        return descriptor

    def _make_map(self) -> tuple[int, mmap.mmap]:
        descriptor = self._own(bpf.create_array(PAGE_BYTES, self._layout.pages))
        memory = mmap.mmap(descriptor, self._layout.pages * PAGE_BYTES)
        return descriptor, self._resources.enter_context(memory)

    def take(self) -> Taken:
        """What changed since the last call, and begin anew. Touches no disk. Raises nothing: doubt is in `lost`."""
        try:
            bpf.put_in_slot(self._slot, self._spare[0])
            self._active, self._spare = self._spare, self._active
            all_missed = self._all_copies_missed()
            complete = self._ledger.complete()
        except (OSError, ValueError) as error:
            return self._everything(str(error))
        marks = drain(self._spare[1], self._layout)
        if marks.lost:
            return self._everything("a request could not be placed on the disk")
        if marks.passthrough:
            return self._everything("a command was sent to the disk past the block layer")
        if all_missed:
            return self._everything("the kernel may have skipped events, so many came at once")
        if not complete:
            return self._everything("the disk's statistics count other requests than were seen")
        if self._disk.resized():
            return self._everything("the source's size changed")
        return Taken(within(marks.ranges, self._disk.source_at, self._disk.source_bytes, self._block_bytes))

    def _everything(self, reason: str) -> Taken:
        return Taken([(0, self._disk.source_bytes)], reason)

    def _misses(self) -> list[int]:
        return [bpf.recursion_misses(program) for program in self._programs]

    def _all_copies_missed(self) -> bool:
        """Can there be an event, since the last call, that no copy saw? Then the counters of all have risen.

        The counters are not read at one instant, so each interval begins before the one before it ended: an event in
        between counts for both rather than, copy by copy, for neither.
        """
        before, self._misses_before = self._misses_before, self._misses()
        return all(now > then for now, then in zip(self._misses(), before, strict=True))

    def close(self) -> None:
        """Detach from the kernel and give back its memory."""
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_tracker(path: str, size_bytes: int, block_bytes: int) -> ChangeTracker | Untracked:
    """Follow the changes of the disk, partition or loop device at `path`, a source of `size_bytes`.

    `block_bytes` is the volume's grid: ranges are rounded outwards to its blocks (and known by 64 KiB at best).
    Everything that stands in the way (no block device, a disk made of other disks, no rights, a kernel without BPF or
    BTF, lockdown) gives Untracked. Raises nothing.
    """
    disk = locate(path)
    if isinstance(disk, Untracked):
        return disk
    if disk.source_bytes != size_bytes:
        return Untracked(f"{path} has {disk.source_bytes} bytes now, not {size_bytes}")
    try:
        return ChangeTracker(disk, block_bytes)
    except (OSError, LookupError, ValueError) as error:
        return Untracked(f"this kernel does not let changes be tracked: {error}")
