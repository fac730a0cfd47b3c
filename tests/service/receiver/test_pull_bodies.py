"""What an agent may ask for as it pulls: anything else is refused, and nothing that rotted is sent."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.protocol.digests import block_digest
from agent.protocol.errors import BadFrame, NotFound, StorageError, UnderstudyError
from agent.protocol.frames import (
    Kind,
    decode,
    encode_blocks,
    encode_offer,
    encode_zeros,
)
from agent.protocol.pages import PAGE_BYTES, page_sums
from recovery.sites.contract import VolumeKey
from service.receiver.manifest import Manifest
from service.receiver.pull import PointReader
from tests.service.receiver.pushing import BLOCK, SERVER, Bench, Pusher, answer_of, digests_of
from tests.service.receiver.test_points import damage
from tests.service.receiver.test_pulling import PAGES, with_pages


@pytest.fixture
def image() -> bytes:
    return random.Random(1).randbytes(40 * BLOCK + 2 * PAGE_BYTES + 512)


@pytest.fixture
def asked(bench: Bench, pusher: Pusher, image: bytes) -> tuple[PointReader, Manifest]:
    return PointReader(bench.archive), bench.archive.manifest(SERVER.id, pusher.push(image).id)


def test_what_is_no_offer_with_its_sums_is_refused(asked: tuple[PointReader, Manifest], image: bytes) -> None:
    reader, manifest = asked
    sums = page_sums(image[:BLOCK])
    offer = encode_offer([2], bytes(32))
    for body in (
        b"",
        offer,
        offer + sums[:-1],
        offer + sums + b"x",
        sums + offer,
        offer + offer,
        encode_offer([40], bytes(32)) + sums,  # a short block has fewer pages
        encode_offer([41], bytes(32)) + sums,
        encode_zeros([2]) + sums,
        encode_blocks([2], block_digest(image[:BLOCK]), [image[:BLOCK]]) + sums,
    ):
        with pytest.raises(BadFrame):
            reader.pages(manifest, 0, body)
    for volume in (-1, 1):
        with pytest.raises(NotFound):
            reader.pages(manifest, volume, offer + sums)
    assert reader.pages(manifest, 0, encode_offer([], b"")).body() == []


@given(body=st.binary(max_size=300))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_body_does_more_than_be_refused(asked: tuple[PointReader, Manifest], body: bytes) -> None:
    reader, manifest = asked
    offer = encode_offer([2, 40], bytes(64))
    for whole in (body, offer + body, offer[:20] + body):
        try:
            reader.pages(manifest, 0, whole)
        except UnderstudyError:
            continue
        assert len(whole) == len(offer) + 2 * (PAGES + 3)


def test_only_what_differs_is_answered_and_only_that_has_to_be_sound(
    asked: tuple[PointReader, Manifest], bench: Bench, image: bytes
) -> None:
    reader, manifest = asked
    digests = digests_of(image)
    offer = encode_offer([1, 2, 4], digests[1] + bytes(31) + b"\1" + bytes(31) + b"\1")
    sums = b"".join(
        page_sums(block)
        for block in (image[BLOCK : 2 * BLOCK], with_pages(image, (2, 5))[2 * BLOCK : 3 * BLOCK], bytes(BLOCK))
    )
    whole, patches = decode(answer_of(reader.pages(manifest, 0, offer + sums, level=0)))
    assert (whole.kind, whole.indices) == (Kind.BLOCKS, (4,))
    assert (patches.kind, patches.indices, patches.plain_bytes) == (Kind.PATCHES, (2,), 2 + PAGE_BYTES)


def test_a_block_that_rotted_at_the_site_is_never_sent(bench: Bench, pusher: Pusher) -> None:
    image = random.Random(6).randbytes(3 * BLOCK)
    point = pusher.push(image)
    manifest = bench.archive.manifest(SERVER.id, point.id)
    damage(bench.site.snapshot_location(VolumeKey(SERVER.id, 0), point.id))
    reader = PointReader(bench.archive)
    sums = page_sums(bytes(BLOCK))
    answered = 0
    for index in range(3):
        try:
            reader.pages(manifest, 0, encode_offer([index], bytes(31) + b"\1") + sums)
            answered += 1
        except StorageError as error:
            assert f"block {index}" in error.message
    assert answered == 2
    around = encode_offer([0, 2], digests_of(image)[0] + digests_of(image)[2])
    assert reader.pages(manifest, 0, around + sums * 2).body() == []
