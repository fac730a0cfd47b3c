"""The change map: where in the kernel's memory which part of the disk is marked, and reading and clearing the marks.

One byte stands for 64 KiB of the disk (plain stores need no atomics and no particular kernel), in a flat array:

    0                 lost          something happened that the program could not place
    1                 passthrough   a command went past the block layer: its range is unknown
    4096 ...          fine          one byte for every 64 KiB
    after that        coarse        one byte for every 16 MiB

A request of up to 16 MiB marks fine bytes, a longer one coarse bytes; one request has less than 4 GiB. So either way
at most 257 bytes are stored, a bound that the kernel's verifier sees through quickly. The price is that a long
discard is rounded outwards by up to 16 MiB at each end. The array takes 16 MiB for each TiB of disk.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

PAGE_BYTES = 4096  # size of one value of the kernel's array map: the flat array is cut into these
LOST_AT = 0
PASSTHROUGH_AT = 1
FINE_SHIFT = 16
COARSE_SHIFT = 24
FINE_LIMIT_BYTES = 1 << COARSE_SHIFT
_PIECE_BYTES = 1 << 20

Range = tuple[int, int]
"""(offset, length) in bytes."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Positions in the flat array for a disk of `size_bytes`."""

    size_bytes: int

    @property
    def fine_at(self) -> int:
        return PAGE_BYTES

    @property
    def coarse_at(self) -> int:
        return self.fine_at + (-(-self.size_bytes >> FINE_SHIFT))

    @property
    def end(self) -> int:
        return self.coarse_at + (-(-self.size_bytes >> COARSE_SHIFT))

    @property
    def pages(self) -> int:
        return -(-self.end // PAGE_BYTES)


@dataclass(frozen=True, slots=True)
class Marks:
    """What one map held: ranges of the disk, rising and not touching."""

    ranges: list[Range]
    lost: bool
    passthrough: bool


def drain(memory: mmap.mmap | bytearray, layout: Layout) -> Marks:
    """Read all marks and clear them. No program may be using the map: it must have been taken out of its slot."""
    lost, passthrough = bool(memory[LOST_AT]), bool(memory[PASSTHROUGH_AT])
    memory[LOST_AT] = memory[PASSTHROUGH_AT] = 0
    size = layout.size_bytes
    spans = [
        *_drain_level(memory, layout.fine_at, layout.coarse_at, FINE_SHIFT),
        *_drain_level(memory, layout.coarse_at, layout.end, COARSE_SHIFT),
    ]
    return Marks(merge((start, min(end, size)) for start, end in sorted(spans)), lost, passthrough)


def _drain_level(memory: mmap.mmap | bytearray, begin: int, end: int, shift: int) -> Iterator[tuple[int, int]]:
    """(start, end) in bytes of the disk for each run of marks."""
    for piece_at in range(begin, end, _PIECE_BYTES):
        # A copy: searching in bytes is many times faster than in a mapping, and nearly all pieces are empty.
        piece = bytes(memory[piece_at : min(piece_at + _PIECE_BYTES, end)])
        at = piece.find(1)
        while at >= 0:
            stop = piece.find(0, at)
            stop = len(piece) if stop < 0 else stop
            memory[piece_at + at : piece_at + stop] = bytes(stop - at)
            yield (piece_at - begin + at) << shift, (piece_at - begin + stop) << shift
            at = piece.find(1, stop)


def merge(spans: Iterable[tuple[int, int]]) -> list[Range]:
    """Join (start, end) that overlap or touch; they come in rising order. Returns (offset, length)."""
    merged: list[list[int]] = []
    for start, end in spans:
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    return [(start, end - start) for start, end in merged]


def within(ranges: Iterable[Range], offset_bytes: int, size_bytes: int, block_bytes: int) -> list[Range]:
    """Ranges of a disk as those of a part of it (a partition), which begins at `offset_bytes` and has `size_bytes`.

    They are rounded outwards to blocks of the part, since it need not begin on a block boundary of the disk; only at
    the part's end may a range end within a block. What lies outside of the part is left out.
    """
    spans = []
    for offset, length in ranges:
        start = max(offset - offset_bytes, 0)
        end = min(offset + length - offset_bytes, size_bytes)
        if start < end:
            rounded_end = -(-end // block_bytes) * block_bytes
            spans.append((start // block_bytes * block_bytes, min(rounded_end, size_bytes)))
    return merge(spans)
