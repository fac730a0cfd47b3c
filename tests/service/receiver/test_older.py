"""Older blocks: read once for sums and patch, in bounded memory, and never more than they are asked for."""

from __future__ import annotations

import random

import pytest

from agent.protocol.digests import DigestMap
from agent.protocol.errors import StorageError
from agent.protocol.grid import BlockGrid
from recovery.sites.contract import VolumeKey
from service.receiver import older
from service.receiver.head import Head
from service.receiver.older import KEPT_RUNS, OlderBlocks
from tests.service.receiver.memory_site import Fuse, MemoryIO
from tests.service.receiver.pushing import BLOCK

APART = 6
"""Blocks so far from one another are read each for itself."""
GRID = BlockGrid((KEPT_RUNS + 10) * APART * BLOCK - 512, BLOCK)
IMAGE = random.Random(1).randbytes(GRID.size_bytes)


class Watched(MemoryIO):
    def __init__(self) -> None:
        super().__init__(bytearray(IMAGE), Fuse(), writable=True)
        self.reads: list[tuple[int, int]] = []
        self.broken = False

    def read_into(self, offset: int, into: memoryview) -> None:
        if self.broken:
            raise StorageError("the disk is broken")
        self.reads.append((offset // BLOCK, -(-len(into) // BLOCK)))
        super().read_into(offset, into)


@pytest.fixture
def io() -> Watched:
    return Watched()


@pytest.fixture
def head(io: Watched) -> Head:
    return Head(VolumeKey("srv-1", 0), GRID, io, DigestMap(GRID))


def content(index: int) -> bytes:
    return IMAGE[index * BLOCK : (index + 1) * BLOCK]


def read(blocks: OlderBlocks, head: Head, *indices: int) -> None:
    found = {
        indices[position]: bytes(run.block(indices[position]))
        for run in blocks.read(head, indices)
        for position in run.positions
    }
    assert found == {index: content(index) for index in indices}


def take(blocks: OlderBlocks, head: Head, *indices: int) -> None:
    """And write over them, as a patch does."""
    for run in blocks.take(head, indices):
        for position in run.positions:
            block = run.block(indices[position])
            assert block == content(indices[position])
            block[:] = bytes(len(block))


def test_what_was_read_for_sums_is_there_for_the_patch(head: Head, io: Watched) -> None:
    blocks = OlderBlocks()
    read(blocks, head, 0, 1, 3, 40, GRID.count - 1)
    assert io.reads == [(0, 4), (40, 1), (GRID.count - 1, 1)]
    take(blocks, head, 1, 3)
    take(blocks, head, 0, 40, GRID.count - 1)
    assert len(io.reads) == 3


def test_what_was_patched_is_read_again(head: Head, io: Watched) -> None:
    blocks = OlderBlocks()
    read(blocks, head, 5, 6)
    take(blocks, head, 5)
    take(blocks, head, 5, 6)
    assert io.reads == [(5, 2), (5, 1)]
    read(blocks, head, 5, 6)
    take(blocks, head, 5, 6)
    assert len(io.reads) == 3


def test_what_finds_no_room_is_read_again(head: Head, io: Watched) -> None:
    blocks = OlderBlocks()
    indices = range(0, (KEPT_RUNS + 4) * APART, APART)
    read(blocks, head, *indices)
    take(blocks, head, *indices)
    assert len(io.reads) == KEPT_RUNS + 4 + 4
    read(blocks, head, *indices[:KEPT_RUNS])
    take(blocks, head, *indices[:KEPT_RUNS])
    assert len(io.reads) == 2 * KEPT_RUNS + 8, "what was taken leaves its room"


def test_blocks_that_nobody_patches_make_room_after_a_while(
    head: Head, io: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = OlderBlocks()
    read(blocks, head, *range(0, KEPT_RUNS * APART, APART))
    monkeypatch.setattr(older, "KEPT_SECONDS", 0.0)
    read(blocks, head, 1)
    take(blocks, head, 1)
    assert len(io.reads) == KEPT_RUNS + 1


def test_each_head_has_its_own_and_one_that_is_closed_leaves_nothing(io: Watched, head: Head) -> None:
    blocks = OlderBlocks()
    other_io = Watched()
    other = Head(VolumeKey("srv-2", 0), GRID, other_io, DigestMap(GRID))
    read(blocks, head, 7)
    read(blocks, other, 7)
    blocks.forget(head)
    take(blocks, head, 7)
    take(blocks, other, 7)
    assert (len(io.reads), len(other_io.reads)) == (2, 1)


def test_what_cannot_be_read_is_left_out_and_not_kept(head: Head, io: Watched) -> None:
    blocks = OlderBlocks()
    io.broken = True
    for _ in range(KEPT_RUNS + 1):
        assert not list(blocks.read(head, [9]))
        assert not list(blocks.take(head, [9]))
    io.broken = False
    take(blocks, head, 9)
    assert io.reads == [(9, 1)]
    read(blocks, head, 9)
    take(blocks, head, 9)
    assert len(io.reads) == 2, "and takes no room"
