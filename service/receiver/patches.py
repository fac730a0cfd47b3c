"""Patches at the receiver: which pages its older blocks have, and new blocks put together from them.

An older block is read twice, for its sums and when its patch has come; what was read lately is kept for that, a little.
Nothing here is trusted: a block that was put together is written only if it has the digest that was announced.
"""

from __future__ import annotations

import mmap
import threading
from collections import OrderedDict

from agent.protocol.digests import ZERO_DIGEST, block_digest
from agent.protocol.errors import BadFrame
from agent.protocol.frames import Answer, Frame, Kind, decode
from agent.protocol.grid import MAX_BLOCK_BYTES, consecutive
from agent.protocol.pages import page_sums, read_patches
from recovery.sites.contract import VolumeKey
from service.receiver.head import Head

KEPT_BYTES = 48 << 20
"""Of older blocks, for all sessions together."""


def blocks_and_patches(body: bytes | bytearray) -> list[Frame]:
    """What one request brings: a BLOCKS frame, a PATCHES frame, or these two. Raises BadFrame."""
    frames = list(decode(body))
    if [frame.kind for frame in frames] not in ([Kind.BLOCKS], [Kind.PATCHES], [Kind.BLOCKS, Kind.PATCHES]):
        raise BadFrame("the body is not one BLOCKS frame, one PATCHES frame, or these two")
    return frames


class Patches:
    """For many threads and sessions. Raises what reading and writing a head raises."""

    def __init__(self, kept_bytes: int = KEPT_BYTES) -> None:
        self._room_bytes = kept_bytes
        self._lock = threading.Lock()
        self._own = threading.local()
        self._kept: OrderedDict[tuple[VolumeKey, int], bytes] = OrderedDict()

    def sums(self, head: Head, frame: Frame, answers: bytearray) -> bytes:
        """The sums of what is in the place of the blocks that are lacking; their answers become DIFFERS. Blocks of
        zeros are left out: there is nothing that a new block could have in common with them."""
        lacking = tuple(
            index
            for position, index in enumerate(frame.indices)
            if answers[position] == Answer.LACKING and head.digests[index] != ZERO_DIGEST
        )
        sums: dict[int, bytes] = {}
        memory = self._memory()
        most = len(memory) // head.grid.block_bytes
        for start, stop in consecutive(lacking):
            run = range(lacking[start], lacking[stop - 1] + 1)
            for blocks in head.grid.covering([head.grid.span(run)], most):
                offset, length = head.grid.span(blocks)
                head.read_older_into(blocks, memory[:length])
                for index in blocks:
                    at = head.grid.offset(index) - offset
                    block = bytes(memory[at : at + head.grid.length(index)])
                    sums[index] = page_sums(block)
                    self._keep(head, index, block)
        for position, index in enumerate(frame.indices):
            if index in sums:
                answers[position] = Answer.DIFFERS
        return b"".join(sums.values())

    def apply(self, head: Head, frame: Frame) -> tuple[int, list[int]]:
        """Write the blocks of a PATCHES frame. Returns how many were written, and those that did not come out as
        announced. Raises BadFrame."""
        patches = list(read_patches(frame, head.grid))
        blocks: dict[int, bytes | bytearray] = {}
        for patch in patches:
            block = bytearray(self._take(head, patch.index))
            patch.apply(block)
            if block_digest(block) == patch.digest:
                blocks[patch.index] = block
        announced = {patch.index: patch.digest for patch in patches}
        good = tuple(blocks)
        for start, stop in consecutive(good):
            run = good[start:stop]
            content = b"".join([blocks[index] for index in run])
            digests = b"".join([announced[index] for index in run])
            head.take(range(run[0], run[-1] + 1), digests, memoryview(content))
        return len(good), [patch.index for patch in patches if patch.index not in blocks]

    def _memory(self) -> memoryview:
        """This thread's own, aligned, so that the disk can write to it."""
        memory: memoryview | None = getattr(self._own, "memory", None)
        if memory is None:
            memory = self._own.memory = memoryview(mmap.mmap(-1, MAX_BLOCK_BYTES))
        return memory

    def _keep(self, head: Head, index: int, block: bytes) -> None:
        with self._lock:
            self._room_bytes -= len(block)
            replaced = self._kept.pop((head.key, index), None)
            self._room_bytes += len(replaced or b"")
            self._kept[head.key, index] = block
            while self._room_bytes < 0:
                _, oldest = self._kept.popitem(last=False)
                self._room_bytes += len(oldest)

    def _take(self, head: Head, index: int) -> bytes | bytearray:
        with self._lock:
            kept = self._kept.pop((head.key, index), None)
            if kept is not None:
                self._room_bytes += len(kept)
                return kept
        block = bytearray(head.grid.length(index))
        head.read_older_into(range(index, index + 1), memoryview(block))
        return block
