"""The ledger: has the program seen all that the disk's own statistics count?

Kernels can fail to run a program without a word: some leave tracing programs out while certain tasks are running. So
each copy of the program adds up the sectors of the requests it sees, and the kernel adds up the same sectors, of the
same requests, in the disk's `stat` file, directly after the tracepoint. The difference stays as it is as long as the
copy sees everything; it changes with each request that the copy, or the kernel, left out.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from pathlib import Path
from typing import Self

from agent.tracking import bpf
from agent.tracking.changemap import PAGE_BYTES

COUNTER_STRIDE_BYTES = 64  # a cache line for each copy's counter
_OPEN_SECONDS = 1.0
_COMPARE_SECONDS = 0.05
_WRITTEN, _DISCARDED = 6, 13  # columns of stat, in sectors


class Ledger:
    """One counter for each copy of the program, and the disk's statistics beside them. close() it."""

    def __init__(self, stat: Path, copies: int) -> None:
        """Raises OSError or ValueError where there are no statistics, or no BPF map to count in."""
        self._stat = os.open(stat, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.map = bpf.create_array(PAGE_BYTES, 1)
        except BaseException:
            os.close(self._stat)
            raise
        self._memory = mmap.mmap(self.map, PAGE_BYTES)
        self._copies = copies
        self._differences: list[int] = []

    def begin(self) -> None:
        """To be called once all copies run. Raises OSError if the disk is too busy to compare."""
        differences = self._quiet_differences(time.monotonic() + _OPEN_SECONDS)
        if differences is None:
            raise OSError("the disk is too busy to make sure that all its requests are seen")
        self._differences = differences

    def complete(self) -> bool:
        """Did, since the last call, at least one copy see everything? Raises OSError, ValueError.

        True also if the disk never rested for long enough to compare: then the next call covers this time as well. A
        disk whose filesystems are frozen rests.
        """
        until = time.monotonic() + _COMPARE_SECONDS
        before = self._differences
        while (found := self._quiet_differences(until)) is not None:
            self._differences = found
            if any(now == then for now, then in zip(found, before, strict=True)):
                return True
            # A request may be between the program and the statistics just now: look again for a while.
            if time.monotonic() > until:
                return False
        return True

    def _quiet_differences(self, until: float) -> list[int] | None:
        """Sectors counted less sectors in the statistics, for each copy, at a moment when no request was completed."""
        while True:
            sectors = self._sectors()
            counted = [
                struct.unpack_from("<Q", self._memory, copy * COUNTER_STRIDE_BYTES)[0] for copy in range(self._copies)
            ]
            if sectors == self._sectors():
                return [int(count) - sectors for count in counted]
            if time.monotonic() > until:
                return None

    def _sectors(self) -> int:
        columns = os.pread(self._stat, 4096, 0).split()
        if len(columns) <= _DISCARDED:
            raise ValueError("the disk's statistics do not count discards")
        return int(columns[_WRITTEN]) + int(columns[_DISCARDED])

    def close(self) -> None:
        self._memory.close()
        os.close(self.map)
        os.close(self._stat)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
