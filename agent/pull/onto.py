"""The target of a pull, block by block: what it holds, and what is made of it by what the service sends.

What was written is read back from the medium at once, round every cache, while the next blocks are on their way.
All methods may be called from several threads, each about blocks of its own, and each with a buffer of its own for
PIECE_BYTES, page-aligned, which they may overwrite.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from agent.pieces import hash_piece, piece_blocks
from agent.protocol.digests import DigestMap, block_digest
from agent.protocol.errors import BadFrame
from agent.protocol.frames import Frame, Kind, decode
from agent.protocol.grid import BlockGrid, consecutive
from agent.protocol.pages import page_sums, read_patches
from agent.volumes.target import TargetVolume


@dataclass(slots=True)
class Taken:
    """What an answer left to be asked. `until`: the first block that it does not cover; None: it covers all."""

    until: int | None = None
    alike: list[int] = field(default_factory=list)
    """Blocks that differ, of which the service wants to know the sums."""
    wrong: list[int] = field(default_factory=list)
    """Blocks that did not come out right of their pages."""
    whole: int = 0
    """How many blocks came whole."""


class Onto:
    """`found` describes what was read from the target: before writing, and again after, where it was written."""

    def __init__(self, target: TargetVolume, grid: BlockGrid) -> None:
        self.grid = grid
        self.found = DigestMap(grid)
        self.read_bytes = 0
        self.written_bytes = 0
        self._target = target

    def look(self, blocks: range, buffer: memoryview) -> None:
        """Hash what the target holds before anything is written."""
        offset, length = self.grid.span(blocks)
        for part in self.grid.covering(self._target.data_ranges(offset, length), piece_blocks(self.grid)):
            content = self._read(part, buffer)
            self.read_bytes += len(content)
            self.found.set_run(part, hash_piece(self.grid, content))

    def digests(self, indices: Sequence[int]) -> bytes:
        """Of what the target was found to hold of these blocks."""
        if isinstance(indices, range):
            return self.found.run(indices)
        return b"".join(map(self.found.__getitem__, indices))

    def sums(self, indices: Sequence[int], buffer: memoryview) -> bytes:
        """The sums of the pages that the target holds of these blocks."""
        return b"".join([page_sums(block) for _, block in self._blocks(indices, buffer)])

    def take(self, answer: bytes, asked: Collection[int], buffer: memoryview) -> Taken:
        """Write what the service sent of the blocks that were asked about, each proven before it is written, and again
        as it is read back. Raises BadFrame, DigestMismatch, TargetError."""
        taken = Taken()
        for frame in decode(answer):
            frame.check_against(self.grid)
            if any(index not in asked for index in frame.indices):
                raise BadFrame("the service sent blocks that were not asked for")
            if frame.kind is Kind.UNTIL:
                (taken.until,) = frame.indices
            elif frame.kind is Kind.OFFER:
                taken.alike += frame.indices
            elif frame.kind is Kind.PATCHES:
                taken.wrong += self._patch(frame, buffer)
            else:
                self._replace(frame)
                taken.whole += len(frame.indices) * (frame.kind is Kind.BLOCKS)
        return taken

    def _replace(self, frame: Frame) -> None:
        content = frame.verified(self.grid) if frame.kind is Kind.BLOCKS else None
        for start, stop in consecutive(frame.indices):
            run = range(frame.indices[start], frame.indices[stop - 1] + 1)
            at, length = start * self.grid.block_bytes, self.grid.span(run)[1]
            self._write(run, None if content is None else content[at : at + length])

    def _patch(self, frame: Frame, buffer: memoryview) -> list[int]:
        """Returns the blocks that did not come out as announced; they stay as they were."""
        wrong: list[int] = []
        patches = iter(list(read_patches(frame, self.grid)))
        for run in self._runs(frame.indices):
            content = self._read(run, buffer)
            good: list[int] = []
            for at, index in enumerate(run):
                patch = next(patches)
                block = content[at * self.grid.block_bytes :][: self.grid.length(index)]
                patch.apply(block)
                (good if block_digest(block) == patch.digest else wrong).append(index)
            for start, stop in consecutive(tuple(good)):
                some = range(good[start], good[stop - 1] + 1)
                begin = self.grid.offset(some.start - run.start)
                self._write(some, content[begin : begin + self.grid.span(some)[1]])
        return wrong

    def _write(self, run: range, content: memoryview | None) -> None:
        """None: zeros."""
        offset, length = self.grid.span(run)
        if content is None:
            self._target.zero(offset, length)
        else:
            self._target.write(offset, content)
        self.written_bytes += length
        self.found.set_run(run, hash_piece(self.grid, self._target.read_back(offset, length)))

    def _blocks(self, indices: Sequence[int], buffer: memoryview) -> Iterator[tuple[int, memoryview]]:
        """What the target holds of these blocks, which rise; each is valid until the next is asked for."""
        for run in self._runs(indices):
            content = self._read(run, buffer)
            for at, index in enumerate(run):
                yield index, content[at * self.grid.block_bytes :][: self.grid.length(index)]

    def _runs(self, indices: Sequence[int]) -> Iterator[range]:
        """Rising blocks as runs that lie next to one another, and fit into a buffer."""
        most = piece_blocks(self.grid)
        for start, stop in consecutive(tuple(indices)):
            end = indices[stop - 1] + 1
            for first in range(indices[start], end, most):
                yield range(first, min(first + most, end))

    def _read(self, run: range, buffer: memoryview) -> memoryview:
        offset, length = self.grid.span(run)
        self._target.read_into(buffer[:length], offset)
        return buffer[:length]
