"""Patches: pages of changed blocks."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.protocol.digests import block_digest
from agent.protocol.errors import BadFrame, UnderstudyError
from agent.protocol.frames import Kind, decode_single, encode_offer, encode_zeros, patches_frame
from agent.protocol.grid import BlockGrid
from agent.protocol.pages import (
    PAGE_BYTES,
    SUM_BYTES,
    Patch,
    differing_pages,
    encode_patches,
    page_count,
    page_sums,
    read_offer_with_sums,
    read_patches,
)

BLOCK = 64 << 10
GRID = BlockGrid(3 * BLOCK + 4096 + 512, BLOCK)


def body_of(patches: list[Patch], level: int = 3) -> bytes:
    return b"".join(encode_patches(patches, GRID, level))


@given(st.data())
def test_what_the_sums_choose_makes_the_new_block_of_the_old_one(data: st.DataObject) -> None:
    index = data.draw(st.integers(0, GRID.count - 1))
    length = GRID.length(index)
    old = bytearray(random.Random(data.draw(st.integers(0, 99))).randbytes(length))
    new = bytearray(old)
    for at in data.draw(st.lists(st.integers(0, length - 1), min_size=1, max_size=20)):
        new[at] ^= data.draw(st.integers(1, 255))
    pages = differing_pages(new, page_sums(old))
    patch = Patch.of(index, block_digest(bytes(new)), memoryview(bytes(new)), pages)
    (read,) = read_patches(decode_single(body_of([patch]), Kind.PATCHES), GRID)
    missed = [
        at
        for at in range(0, length, PAGE_BYTES)
        if old[at : at + PAGE_BYTES] != new[at : at + PAGE_BYTES] and at // PAGE_BYTES not in pages
    ]
    for at in missed:  # one in 65,536: then the block's digest tells
        assert page_sums(old[at : at + PAGE_BYTES]) == page_sums(new[at : at + PAGE_BYTES])
    read.apply(old)
    assert (old == new) is not bool(missed) and read.index == index and read.digest == block_digest(bytes(new))


def test_only_pages_that_differ_travel() -> None:
    old, new = bytes(BLOCK), bytearray(BLOCK)
    new[5 * PAGE_BYTES] = new[-1] = 1
    assert differing_pages(new, page_sums(old)) == [5, 15]
    assert differing_pages(old, page_sums(old)) == []
    patch = Patch.of(0, block_digest(bytes(new)), memoryview(bytes(new)), [5, 15])
    assert decode_single(body_of([patch], level=0), Kind.PATCHES).plain_bytes == 2 + 2 * PAGE_BYTES


def test_several_blocks_share_a_frame() -> None:
    contents = [bytes([number]) * BLOCK for number in (1, 2)] + [b"\3" * GRID.length(3)]
    patches = [
        Patch.of(index, block_digest(content), memoryview(content), [index % 2, 1])
        if index == 0
        else Patch.of(index, block_digest(content), memoryview(content), [0])
        for index, content in zip((0, 1, 3), contents, strict=True)
    ]
    read = list(read_patches(decode_single(body_of(patches), Kind.PATCHES), GRID))
    assert [(patch.index, list(patch.pages)) for patch in read] == [(0, [0, 1]), (1, [0]), (3, [0])]
    assert bytes(read[2].contents[0]) == b"\3" * PAGE_BYTES


def test_the_last_page_of_a_volume_may_be_short() -> None:
    content = b"z" * GRID.length(3)
    (read,) = read_patches(
        decode_single(body_of([Patch.of(3, block_digest(content), memoryview(content), [1])]), Kind.PATCHES), GRID
    )
    assert bytes(read.contents[0]) == b"z" * 512


@pytest.mark.parametrize(
    ("indices", "plain"),
    [
        ([0], b"\1"),  # within its bitmap
        ([0], b"\1\0" + b"x" * (PAGE_BYTES - 1)),  # within its page
        ([0], b"\1\0" + b"x" * (PAGE_BYTES + 1)),  # something behind it
        ([3], b"\4\0" + b"x" * PAGE_BYTES),  # a page that the short block has not
        ([4], b"\1\0" + b"x" * PAGE_BYTES),  # a block outside
    ],
)
def test_patches_that_do_not_fit_are_refused(indices: list[int], plain: bytes) -> None:
    body = b"".join(patches_frame(indices, bytes(32 * len(indices)), plain))
    with pytest.raises(BadFrame):
        list(read_patches(decode_single(body, Kind.PATCHES), GRID))


@given(st.binary(max_size=200), st.lists(st.integers(0, 5), max_size=4, unique=True))
def test_no_payload_does_more_than_be_refused(plain: bytes, indices: list[int]) -> None:
    body = b"".join(patches_frame(sorted(indices), bytes(32 * len(indices)), plain))
    try:
        patches = list(read_patches(decode_single(body, Kind.PATCHES), GRID))
    except UnderstudyError:
        return
    assert sum(len(content) for patch in patches for content in patch.contents) <= len(plain)


@given(st.binary(max_size=200), st.integers(0, 120), st.lists(st.integers(0, 5), max_size=4, unique=True))
def test_an_offer_with_sums_has_the_sums_of_each_block_or_is_refused(tail: bytes, cut: int, indices: list[int]) -> None:
    indices.sort()
    offer = encode_offer(indices, bytes(32 * len(indices)))
    for body in (offer + tail, offer[:cut], tail):
        try:
            read, sums = read_offer_with_sums(body, GRID)
        except UnderstudyError:
            continue
        assert read.indices == tuple(indices)
        assert [len(one) for one in sums] == [SUM_BYTES * page_count(GRID.length(index)) for index in indices]
        assert offer + b"".join(sums) == body


def test_an_offer_may_be_followed_by_its_sums_and_by_nothing_else() -> None:
    offer = encode_offer([1, 3], bytes(64))
    sums = bytes(range(2 * 16)) + b"wxyz"
    assert read_offer_with_sums(offer + sums, GRID)[1] == [sums[:32], sums[32:]]
    for body in (offer, offer + sums[:-1], offer + sums + b"\0", encode_zeros([1, 3]) + sums, offer[:-1]):
        with pytest.raises(BadFrame):
            read_offer_with_sums(body, GRID)
