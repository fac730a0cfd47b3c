"""Patches at the receiver: which pages its older blocks have, and new blocks put together from them.

An older block is read twice, for its sums and when its patch has come, straight from the disk: keeping it meanwhile
took more processor time, for copies, than reading it again. Blocks that lie near one another are read at once.
Nothing here is trusted: a block that was put together is written only if it has the digest that was announced.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Iterator, Sequence

from agent.protocol.digests import ZERO_DIGEST, block_digest
from agent.protocol.errors import BadFrame
from agent.protocol.frames import Answer, Frame, Kind, decode
from agent.protocol.grid import consecutive
from agent.protocol.pages import page_sums, read_patches
from service.receiver.head import Head

READ_BYTES = 4 << 20
"""What is read at once, into memory that each thread keeps."""
GAP_BYTES = 256 << 10
"""What lies between two older blocks is read with them up to here: one read more costs about as much."""


def blocks_and_patches(body: bytes | bytearray) -> list[Frame]:
    """What one request brings: a BLOCKS frame, a PATCHES frame, or these two. Raises BadFrame."""
    frames = list(decode(body))
    if [frame.kind for frame in frames] not in ([Kind.BLOCKS], [Kind.PATCHES], [Kind.BLOCKS, Kind.PATCHES]):
        raise BadFrame("the body is not one BLOCKS frame, one PATCHES frame, or these two")
    return frames


class Patches:
    """For many threads and sessions. Raises what reading and writing a head raises."""

    def __init__(self) -> None:
        self._own = threading.local()

    def sums(self, head: Head, frame: Frame, answers: bytearray) -> bytes:
        """The sums of what is in the place of the blocks that are lacking; their answers become DIFFERS. Blocks of
        zeros are left out: there is nothing that a new block could have in common with them."""
        lacking = [
            position
            for position, index in enumerate(frame.indices)
            if answers[position] == Answer.LACKING and head.digests[index] != ZERO_DIGEST
        ]
        for position in lacking:
            answers[position] = Answer.DIFFERS
        older = self._older(head, [frame.indices[position] for position in lacking])
        return b"".join([page_sums(block) for _, blocks in older for block in blocks])

    def apply(self, head: Head, frame: Frame) -> tuple[int, list[int]]:
        """Write the blocks of a PATCHES frame. Returns how many were written, and those that did not come out as
        announced. Raises BadFrame."""
        patches = list(read_patches(frame, head.grid))
        wrong: list[int] = []
        for positions, blocks in self._older(head, frame.indices):
            good: list[int] = []
            for position, block in zip(positions, blocks, strict=True):
                patches[position].apply(block)
                (good if block_digest(block) == patches[position].digest else wrong).append(position)
            indices = tuple(frame.indices[position] for position in good)
            for start, stop in consecutive(indices):
                run = range(indices[start], indices[stop - 1] + 1)
                digests = b"".join([patches[position].digest for position in good[start:stop]])
                at = head.grid.offset(run.start - frame.indices[positions.start])
                head.take(run, digests, self._memory()[at : at + head.grid.span(run)[1]])
        return len(patches) - len(wrong), [frame.indices[position] for position in wrong]

    def _older(self, head: Head, indices: Sequence[int]) -> Iterator[tuple[range, list[memoryview]]]:
        """What was in the place of these blocks, which rise, some at a time: their positions, and for each its content,
        writable, in this thread's memory until the next are asked for. The first begins where that memory does."""
        grid, memory = head.grid, self._memory()
        most, gap = READ_BYTES // grid.block_bytes, 1 + GAP_BYTES // grid.block_bytes
        start = 0
        for stop in range(1, len(indices) + 1):
            first, last = indices[start], indices[stop - 1]
            if stop < len(indices) and indices[stop] - last <= gap and indices[stop] - first < most:
                continue
            blocks = range(first, last + 1)
            head.read_older_into(blocks, memory[: grid.span(blocks)[1]])
            views = []
            for index in indices[start:stop]:
                at = grid.offset(index - first)
                views.append(memory[at : at + grid.length(index)])
            yield range(start, stop), views
            start = stop

    def _memory(self) -> memoryview:
        """This thread's own, aligned, so that the disk can write to it."""
        memory: memoryview | None = getattr(self._own, "memory", None)
        if memory is None:
            memory = self._own.memory = memoryview(mmap.mmap(-1, READ_BYTES))
        return memory
