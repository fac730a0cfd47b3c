"""Patches at the receiver: a block is put together from an older one, and proven, or not taken."""

from __future__ import annotations

import errno
import os
import random

import pytest

from agent.protocol.digests import block_digest
from agent.protocol.errors import BadFrame
from agent.protocol.frames import Answer, encode_blocks, encode_offer, encode_zeros
from agent.protocol.grid import BlockGrid
from agent.protocol.pages import PAGE_BYTES, SUM_BYTES, Patch, differing_pages, encode_patches, page_sums
from recovery.sites.contract import VolumeKey
from tests.service.receiver.pushing import BLOCK, SERVER, Bench, Pusher

BLOCKS = 8
GRID = BlockGrid(BLOCKS * BLOCK, BLOCK)
PAGES = BLOCK // PAGE_BYTES


def block_of(image: bytes, index: int) -> bytes:
    return image[index * BLOCK : (index + 1) * BLOCK]


def changed(image: bytes, *pages: tuple[int, int]) -> bytes:
    """The image with a byte changed in each (block, page)."""
    fresh = bytearray(image)
    for block, page in pages:
        fresh[block * BLOCK + page * PAGE_BYTES + 7] ^= 0xFF
    return bytes(fresh)


class Patcher:
    """An agent's end of patching."""

    def __init__(self, bench: Bench, session: str) -> None:
        self.bench = bench
        self.session = session

    def offer(self, image: bytes, *indices: int) -> tuple[bytes, bytes]:
        offer = encode_offer(indices, b"".join(block_digest(block_of(image, index)) for index in indices))
        answer = self.bench.receiver.offer(SERVER.id, self.session, 0, offer, with_sums=True)
        return answer[: len(indices)], answer[len(indices) :]

    def patch(self, image: bytes, pages: dict[int, list[int]]) -> tuple[int, list[int]]:
        patches = [
            Patch.of(index, block_digest(block_of(image, index)), memoryview(block_of(image, index)), chosen)
            for index, chosen in pages.items()
        ]
        reply = self.bench.receiver.blocks(SERVER.id, self.session, 0, b"".join(encode_patches(patches, GRID, 3)))
        return reply.written_blocks, reply.mismatched


@pytest.fixture
def image() -> bytes:
    return random.Random(1).randbytes(GRID.size_bytes)


def test_pages_that_differ_make_the_point(bench: Bench, pusher: Pusher, image: bytes) -> None:
    pusher.push(image)
    fresh = changed(image, (1, 0), (1, 15), (2, 3), (6, 8))
    session = pusher.begin(fresh).session
    patcher = Patcher(bench, session)
    answers, sums = patcher.offer(fresh, 0, 1, 2, 6)
    assert list(answers) == [Answer.HAVE, Answer.DIFFERS, Answer.DIFFERS, Answer.DIFFERS]
    assert sums == b"".join(page_sums(block_of(image, index)) for index in (1, 2, 6))
    each = PAGES * SUM_BYTES
    pages = {
        index: differing_pages(block_of(fresh, index), sums[at * each : (at + 1) * each])
        for at, index in enumerate((1, 2, 6))
    }
    assert pages == {1: [0, 15], 2: [3], 6: [8]}
    assert patcher.patch(fresh, pages) == (3, [])
    point = pusher.commit(session, fresh)
    assert bench.content(point.id) == fresh


def test_a_block_that_does_not_come_out_as_announced_is_not_written(bench: Bench, pusher: Pusher, image: bytes) -> None:
    pusher.push(image)
    fresh = changed(image, (1, 0), (1, 15), (3, 2))
    session = pusher.begin(fresh).session
    patcher = Patcher(bench, session)
    assert patcher.patch(fresh, {1: [0], 3: [2]}) == (1, [1])
    assert list(patcher.offer(fresh, 1, 3)[0]) == [Answer.DIFFERS, Answer.HAVE]
    assert patcher.patch(fresh, {1: [0, 15]}) == (1, [])
    assert bench.content(pusher.commit(session, fresh).id) == fresh


def test_blocks_that_were_zero_have_no_sums(bench: Bench, pusher: Pusher, image: bytes) -> None:
    pusher.push(image[:BLOCK] + bytes(GRID.size_bytes - BLOCK))
    session = pusher.begin(image).session
    answers, sums = Patcher(bench, session).offer(image, 0, 4)
    assert list(answers) == [Answer.HAVE, Answer.LACKING] and sums == b""


def test_a_patch_goes_on_what_an_earlier_push_of_the_session_wrote(bench: Bench, pusher: Pusher, image: bytes) -> None:
    pusher.push(image)
    once, twice = changed(image, (5, 1)), changed(image, (5, 1), (5, 9))
    session = pusher.begin(twice).session
    patcher = Patcher(bench, session)
    assert patcher.patch(once, {5: [1]}) == (1, [])
    _, sums = patcher.offer(twice, 5)
    pages = differing_pages(block_of(twice, 5), sums)
    assert pages == [1, 9], "the sums are of the older block, and so is what the patch is put upon"
    assert patcher.patch(twice, {5: pages}) == (1, [])
    assert bench.content(pusher.commit(session, twice).id) == twice


def test_whole_blocks_and_patches_share_a_request_and_nothing_else_does(
    bench: Bench, pusher: Pusher, image: bytes
) -> None:
    pusher.push(image)
    fresh = changed(image, (1, 4), *((7, page) for page in range(PAGES)))
    session = pusher.begin(fresh).session
    whole = encode_blocks([7], block_digest(block_of(fresh, 7)), [block_of(fresh, 7)])
    patch = Patch.of(1, block_digest(block_of(fresh, 1)), memoryview(block_of(fresh, 1)), [4])
    patches = b"".join(encode_patches([patch], GRID, 3))
    for body in (b"", patches + whole, whole + whole, patches + patches, encode_zeros([1]), whole + encode_zeros([1])):
        with pytest.raises(BadFrame):
            bench.receiver.blocks(SERVER.id, session, 0, body)
    reply = bench.receiver.blocks(SERVER.id, session, 0, whole + patches)
    assert (reply.written_blocks, reply.mismatched) == (2, [])
    assert bench.content(pusher.commit(session, fresh).id) == fresh


def test_without_being_asked_no_sums_are_told(bench: Bench, pusher: Pusher, image: bytes) -> None:
    pusher.push(image)
    fresh = changed(image, (2, 2))
    session = pusher.begin(fresh).session
    offer = encode_offer([2], block_digest(block_of(fresh, 2)))
    assert bench.receiver.offer(SERVER.id, session, 0, offer) == bytes([Answer.LACKING])


def test_blocks_near_and_far_are_patched_each_with_its_own_and_nothing_between_is_touched(
    bench: Bench, pusher: Pusher
) -> None:
    blocks = 200  # more than is read at once, near ones read together, with gaps, up to a short last block
    grid = BlockGrid(blocks * BLOCK - 3 * 512, BLOCK)
    image = random.Random(5).randbytes(grid.size_bytes)
    pusher.push(image)
    pages = {index: [index % PAGES] for index in (0, 1, 2, 5, 6, 30, 63, 64, 65, 66, 69, 90, 150, 196)} | {199: [0]}
    fresh = changed(image, *((index, page) for index, (page,) in pages.items()))
    spoilt = changed(fresh, (2, 9), (65, 4))  # what is announced of these is not what the patches make
    session = pusher.begin(fresh).session
    patches = [
        Patch.of(index, block_digest(block_of(spoilt, index)), memoryview(block_of(fresh, index)), chosen)
        for index, chosen in pages.items()
    ]
    reply = bench.receiver.blocks(SERVER.id, session, 0, b"".join(encode_patches(patches, grid, 3)))
    assert (reply.written_blocks, reply.mismatched) == (len(pages) - 2, [2, 65])
    patcher = Patcher(bench, session)
    answers, _ = patcher.offer(fresh, *range(blocks))
    assert [index for index in range(blocks) if answers[index] != Answer.HAVE] == [2, 65]
    whole = [block_of(fresh, 2), block_of(fresh, 65)]
    body = encode_blocks([2, 65], b"".join(map(block_digest, whole)), whole)
    bench.receiver.blocks(SERVER.id, session, 0, body)
    assert bench.content(pusher.commit(session, fresh).id) == fresh


def test_where_the_older_blocks_cannot_be_read_new_ones_go_whole(
    bench: Bench, pusher: Pusher, image: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bad sector in a point must not keep the server from getting new ones."""
    older = pusher.push(image)
    fresh = changed(image, (1, 0), (6, 8))
    session = pusher.begin(fresh).session
    patcher = Patcher(bench, session)
    point = bench.site.snapshot_location(VolumeKey(SERVER.id, 0), older.id)
    read = os.preadv

    def failing(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        if os.path.sameopenfile(descriptor, bad):
            raise OSError(errno.EIO, "Input/output error")
        return read(descriptor, buffers, offset)

    bad = os.open(point, os.O_RDONLY)
    try:
        monkeypatch.setattr(os, "preadv", failing)
        answers, sums = patcher.offer(fresh, 0, 1, 6)
        assert list(answers) == [Answer.HAVE, Answer.LACKING, Answer.LACKING] and not sums
        assert patcher.patch(fresh, {1: [0]}) == (0, [1])
        pusher.send(session, fresh, [1, 6])
        made = pusher.commit(session, fresh)
    finally:
        os.close(bad)
    assert bench.content(made.id) == fresh
