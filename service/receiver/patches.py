"""Patches at the receiver: which pages its older blocks have, and new blocks put together from them.

Nothing here is trusted: a block that was put together is written only if it has the digest that was announced.
"""

from __future__ import annotations

from agent.protocol.digests import ZERO_DIGEST, block_digest
from agent.protocol.errors import BadFrame
from agent.protocol.frames import Answer, Frame, Kind, decode
from agent.protocol.grid import consecutive
from agent.protocol.pages import page_sums, read_patches
from service.receiver.head import Head
from service.receiver.older import OlderBlocks


def blocks_and_patches(body: bytes | bytearray) -> list[Frame]:
    """What one request brings: a BLOCKS frame, a PATCHES frame, or these two. Raises BadFrame."""
    frames = list(decode(body))
    if [frame.kind for frame in frames] not in ([Kind.BLOCKS], [Kind.PATCHES], [Kind.BLOCKS, Kind.PATCHES]):
        raise BadFrame("the body is not one BLOCKS frame, one PATCHES frame, or these two")
    return frames


class Patches:
    """For many threads and sessions. Raises what reading and writing a head raises."""

    def __init__(self) -> None:
        self._older = OlderBlocks()

    def sums(self, head: Head, frame: Frame, answers: bytearray) -> bytes:
        """The sums of what is in the place of the blocks that are lacking; their answers become DIFFERS. Blocks of
        zeros are left out: there is nothing that a new block could have in common with them. So is what cannot be
        read."""
        lacking = [
            position
            for position, index in enumerate(frame.indices)
            if answers[position] == Answer.LACKING and head.digests[index] != ZERO_DIGEST
        ]
        indices = [frame.indices[position] for position in lacking]
        sums = []
        for older in self._older.read(head, indices):
            for position in older.positions:
                answers[lacking[position]] = Answer.DIFFERS
                sums.append(page_sums(older.block(indices[position])))
        return b"".join(sums)

    def apply(self, head: Head, frame: Frame) -> tuple[int, list[int]]:
        """Write the blocks of a PATCHES frame. Returns how many were written, and those that did not come out as
        announced, or had nothing that could be read to put them upon. Raises BadFrame."""
        patches = list(read_patches(frame, head.grid))
        wrong = set(range(len(patches)))
        for older in self._older.take(head, frame.indices):
            good: list[int] = []
            for position in older.positions:
                block = older.block(frame.indices[position])
                patches[position].apply(block)
                if block_digest(block) == patches[position].digest:
                    good.append(position)
            indices = tuple(frame.indices[position] for position in good)
            for start, stop in consecutive(indices):
                blocks = range(indices[start], indices[stop - 1] + 1)
                digests = b"".join([patches[position].digest for position in good[start:stop]])
                head.take(blocks, digests, older.blocks(blocks))
            wrong.difference_update(good)
        return len(patches) - len(wrong), [frame.indices[position] for position in sorted(wrong)]

    def forget(self, head: Head) -> None:
        """Its push has ended."""
        self._older.forget(head)
