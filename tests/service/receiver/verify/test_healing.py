"""What is damaged is put back where a good copy is proven, and nothing else is ever written into a point."""

from __future__ import annotations

import dataclasses
import random

import pytest

from recovery.sites.contract import Extent
from service.receiver.verify.data import VolumePoints
from service.receiver.verify.doubts import Doubts
from tests.service.receiver import pushing
from tests.service.receiver.pushing import BLOCK, SERVER, Bench, Pusher
from tests.service.receiver.verify.rot import KEY, file_of, flip, place_of, verifier_of
from tests.service.receiver.verify.test_verifier import block_of, image_of, with_block


def test_a_block_is_healed_from_another_point_that_has_it_of_its_own(bench: Bench, pusher: Pusher) -> None:
    image = image_of(1)
    first = pusher.push(image)
    second = pusher.push(with_block(image, 15, random.Random(2).randbytes(BLOCK)))
    third = pusher.push(image)  # has block 15 again, in a file of its own
    path = file_of(bench, first.id)
    flip(path, place_of(path, block_of(image, 15)))
    verdict = verifier_of(bench).verify(SERVER.id, first.id, heal=True)
    (finding,) = verdict.findings
    assert finding.healed
    assert path.stat().st_mode & 0o777 == 0o444
    for point in (first, second, third):
        assert verifier_of(bench).verify(SERVER.id, point.id).findings == []
    assert bench.content(first.id) == image == bench.content(third.id)


def test_a_block_is_healed_from_elsewhere_on_the_same_volume(bench: Bench, pusher: Pusher) -> None:
    image = image_of(1)
    image = with_block(image, 2, block_of(image, 15))
    point = pusher.push(image)
    path = file_of(bench, point.id)
    flip(path, place_of(path, block_of(image, 15)))  # the first of the two
    assert verifier_of(bench).verify(SERVER.id, point.id, heal=True).sound
    assert bench.content(point.id) == image


@pytest.fixture
def sibling(bench: Bench, pusher: Pusher, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Another server of the tenant, with one point; the image on it."""
    image = image_of(1)
    other = dataclasses.replace(SERVER, id="srv-web02", name="web02", owner="machine-2")
    with monkeypatch.context() as patch:
        patch.setattr(pushing, "SERVER", other)
        Pusher(bench, "machine-2").push(image)
    return image


def test_damage_that_many_points_show_is_healed_once_where_it_lies_from_another_server(
    bench: Bench, pusher: Pusher, sibling: bytes
) -> None:
    image = with_block(sibling, 1, random.Random(9).randbytes(BLOCK))
    points = [pusher.push(image)]
    points += [pusher.push(with_block(image, 0, random.Random(seed).randbytes(BLOCK))) for seed in (2, 3, 4)]
    path = file_of(bench, points[0].id)
    others = [file_of(bench, point.id).read_bytes() for point in points[1:]]
    flip(path, place_of(path, block_of(image, 15)))
    assert not verifier_of(bench).verify(SERVER.id, points[-1].id, heal=True).sound, "no other server of this tenant"
    verifier = verifier_of(bench, "srv-web02")
    assert verifier.verify(SERVER.id, points[-1].id, heal=True).sound
    assert [file_of(bench, point.id).read_bytes() for point in points[1:]] == others
    assert all(verifier.verify(SERVER.id, point.id).findings == [] for point in points)


def test_what_is_not_the_signed_block_is_never_written(
    bench: Bench, pusher: Pusher, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = image_of(1)
    point = pusher.push(image)
    path = file_of(bench, point.id)
    flip(path, place_of(path, block_of(image, 15)))
    before = path.read_bytes()
    monkeypatch.setattr(VolumePoints, "copies", lambda self, wanted, points: dict.fromkeys(wanted, bytes(BLOCK)))
    verdict = verifier_of(bench).verify(SERVER.id, point.id, heal=True)
    assert not verdict.sound
    assert "not what point" in verdict.findings[0].way_out
    assert path.read_bytes() == before


def test_the_next_push_brings_what_was_damaged_and_heals_the_points_before(bench: Bench, pusher: Pusher) -> None:
    image = image_of(1)
    first, second = pusher.push(image), pusher.push(with_block(image, 0, random.Random(2).randbytes(BLOCK)))
    newest = with_block(image, 0, random.Random(2).randbytes(BLOCK))
    path = file_of(bench, first.id)
    flip(path, place_of(path, block_of(image, 15)))
    verifier = verifier_of(bench)
    assert not verifier.verify(SERVER.id, second.id, heal=True).sound
    begun = pusher.begin(newest)
    assert begun.volumes[0].root != second.volumes[0].root, "the agent has to notice that something is missing"
    lacking = pusher.offer(begun.session, newest)
    assert lacking == [15]
    pusher.send(begun.session, newest, lacking)
    third = pusher.commit(begun.session, newest)
    assert verifier.verify(SERVER.id, third.id).findings == []
    assert Doubts(bench.site).of(KEY) == []
    assert verifier.verify(SERVER.id, second.id, heal=True).sound
    assert verifier.verify(SERVER.id, first.id).findings == []
    assert [bench.content(point.id) for point in (first, second, third)] == [image, newest, newest]


def test_nothing_is_healed_while_the_server_is_pushed_and_the_reason_is_told(bench: Bench, pusher: Pusher) -> None:
    image = image_of(1)
    image = with_block(image, 2, block_of(image, 15))
    point = pusher.push(image)
    path = file_of(bench, point.id)
    flip(path, place_of(path, block_of(image, 15)))
    verifier = verifier_of(bench)
    pusher.begin(image)
    verdict = verifier.verify(SERVER.id, point.id, heal=True)
    assert not verdict.sound
    assert "pushed" in verdict.findings[0].way_out
    bench.receiver.close()
    assert verifier.verify(SERVER.id, point.id, heal=True).sound


def test_nothing_is_healed_while_an_instance_or_a_reader_uses_the_chain(bench: Bench, pusher: Pusher) -> None:
    image = image_of(1)
    image = with_block(image, 2, block_of(image, 15))
    point = pusher.push(image)
    path = file_of(bench, point.id)
    flip(path, place_of(path, block_of(image, 15)))
    reading = bench.site.open_snapshot(KEY, point.id)
    verdict = verifier_of(bench).verify(SERVER.id, point.id, heal=True)
    assert "not healed" in verdict.findings[0].way_out
    reading.close()
    assert verifier_of(bench).verify(SERVER.id, point.id, heal=True).sound


def test_doubts_in_which_a_bit_has_flipped_are_about_everything_or_say_the_same(bench: Bench) -> None:
    """A digit that is another one would have the next push stand on blocks that are known to be damaged."""
    doubts, some = Doubts(bench.site), [Extent(65536, 131072), Extent(1 << 40, 65536)]
    doubts.add(KEY, some)
    assert doubts.of(KEY) == some
    sound = bench.site.read_document(SERVER.id, "volume-0.doubts")
    for bit in range(8 * len(sound)):
        damaged = bytearray(sound)
        damaged[bit // 8] ^= 1 << bit % 8
        bench.site.write_document(SERVER.id, "volume-0.doubts", bytes(damaged))
        found = doubts.of(KEY)
        assert found == some or (found[0].offset == 0 and found[0].length >= 1 << 46)
    Doubts(bench.site).replace(KEY, [])
    assert Doubts(bench.site).of(KEY) == []


@pytest.mark.parametrize("blocks", [[], [0]])
def test_sound_blocks_are_left_alone(bench: Bench, pusher: Pusher, blocks: list[int]) -> None:
    image = image_of(1)
    point = pusher.push(image)
    before = file_of(bench, point.id).read_bytes()
    with VolumePoints(bench.site, bench.archive, KEY) as points:
        assert points.suffering(point.id, blocks) == {}
        points.heal(point.id, blocks, lambda wanted: {})
    assert file_of(bench, point.id).read_bytes() == before
