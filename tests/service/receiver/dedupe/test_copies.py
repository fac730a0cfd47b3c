"""What the tenant has elsewhere is copied; a hint is only a hint, whatever it says."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agent.protocol.errors import StorageFull
from agent.protocol.messages import Point
from recovery.sites.contract import VolumeKey
from service.receiver.dedupe import sources as sources_module
from service.receiver.dedupe.index import Place
from service.receiver.retention import Retention
from tests.patience import PATIENCE_SECONDS
from tests.seeds import seeded
from tests.service.receiver.dedupe.estate import Estate, Machine, make_image
from tests.service.receiver.pushing import BLOCK


def test_what_another_server_of_the_tenant_brought_is_not_sent_again(estate: Estate) -> None:
    image = make_image(60, seed=1, tail_bytes=512)
    Machine(estate, "a").push(image)
    clone = bytearray(image)
    clone[20 * BLOCK : 21 * BLOCK] = random.Random(2).randbytes(BLOCK)
    b = Machine(estate, "b")
    point = b.push(bytes(clone))
    assert b.sent == [20]
    assert b.copied == [block for block in b.data_blocks(bytes(clone)) if block != 20]
    assert estate.content(point, b.id) == clone


def test_another_tenants_content_is_never_copied_nor_told_of(estate: Estate) -> None:
    image = make_image(30, seed=1)
    Machine(estate, "a", tenant="one").push(image)
    b = Machine(estate, "b", tenant="two")
    b.push(image)
    assert (b.sent, b.copied) == (b.data_blocks(image), [])


def test_even_a_hint_at_another_tenants_volume_gives_nothing(estate: Estate) -> None:
    image = make_image(10, seed=1)
    a, b, c = (Machine(estate, name, tenant=tenant) for name, tenant in (("a", "one"), ("b", "two"), ("c", "two")))
    a.push(image)
    digests = a.digests_of(image)
    estate.index.add("two", a.id, 0, range(10), digests.run(range(10)))
    b.push(image)
    assert (b.sent, b.copied) == (b.data_blocks(image), [])
    # nor out of a push that is under way
    other = make_image(10, seed=2)
    estate.index.add("two", a.id, 0, range(10), a.digests_of(other).run(range(10)))
    a.bring(a.begin(other).session, other)
    c.push(other)
    assert (c.sent, c.copied) == (c.data_blocks(other), [])


@pytest.mark.parametrize(
    "place",
    [
        Place("srv-a", 0, 7),
        Place("srv-a", 0, 1 << 60),
        Place("srv-a", 40, 0),
        Place("srv-nobody", 0, 0),
        Place("../../etc", 0, 0),
        Place("srv-b", 0, 3),
    ],
    ids=str,
)
def test_a_wrong_hint_costs_a_look_and_is_forgotten(estate: Estate, place: Place) -> None:
    Machine(estate, "a").push(make_image(12, seed=1))
    image = make_image(12, seed=2)
    b = Machine(estate, "b")
    block = b.data_blocks(image)[2]
    digest = b.digests_of(image)[block]
    estate.index.add("default", place.server_id, place.volume, [place.block], digest)
    point = b.push(image)
    assert b.sent == b.data_blocks(image)
    assert estate.content(point, b.id) == image
    assert estate.index.find("default", [digest]) == [Place("srv-b", 0, block)], "what is right now is known now"


def test_a_run_of_blocks_with_wrong_ones_among_them_is_taken_in_parts(estate: Estate) -> None:
    image = make_image(40, seed=1)
    a, b = Machine(estate, "a"), Machine(estate, "b")
    a.push(image)
    other = bytearray(image)
    for block in (3, 4, 17):
        other[block * BLOCK : (block + 1) * BLOCK] = random.Random(block).randbytes(BLOCK)
        estate.index.add("default", a.id, 0, [block], b.digests_of(bytes(other))[block])
    point = b.push(bytes(other))
    assert b.sent == [3, 4, 17]
    assert estate.content(point, b.id) == other


def test_what_moved_on_the_disk_is_found_in_the_newest_point(estate: Estate) -> None:
    image = make_image(30, seed=1)
    a = Machine(estate, "a")
    a.push(image)
    moved = make_image(5, seed=2) + image
    point = a.push(moved)
    assert a.sent == a.data_blocks(moved[: 5 * BLOCK])
    assert estate.content(point, a.id) == moved


def test_what_is_on_the_disk_twice_is_sent_once(estate: Estate) -> None:
    half = make_image(16, seed=1)
    a = Machine(estate, "a")
    point = a.push(half + half)
    assert a.sent == a.data_blocks(half)
    assert estate.content(point, a.id) == half + half


def test_what_another_server_is_just_bringing_is_copied_already(estate: Estate) -> None:
    image = make_image(30, seed=1)
    a, b = Machine(estate, "a"), Machine(estate, "b")
    under_way = a.begin(image).session
    a.bring(under_way, image)
    point = b.push(image)
    assert b.sent == []
    assert estate.content(point, b.id) == image
    assert estate.content(a.commit(under_way, image), a.id) == image


def test_a_short_last_block_is_copied_only_to_where_one_is(estate: Estate) -> None:
    image = make_image(4, seed=1, tail_bytes=1024)
    Machine(estate, "a").push(image)
    b = Machine(estate, "b")
    longer = image + bytes(BLOCK)  # the tail's bytes, in a block that goes on with zeros
    point = b.push(longer)
    assert b.sent == [4]
    assert estate.content(point, b.id) == longer


def test_blocks_of_another_size_do_not_get_in_the_way(estate: Estate) -> None:
    image = make_image(16, seed=1)
    Machine(estate, "a").push(image)
    small = Machine(estate, "b", block_bytes=4096)
    estate.index.add("default", "srv-a", 0, [1], small.digests_of(image)[16])
    point = small.push(image)
    assert small.copied == []
    assert estate.content(point, small.id) == image


def test_a_rotten_source_gives_what_is_sound_and_the_rest_is_sent(estate: Estate) -> None:
    image = make_image(30, seed=1)
    a, b = Machine(estate, "a"), Machine(estate, "b")
    path = Path(estate.site.snapshot_location(VolumeKey(a.id, 0), a.push(image).id))
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    victim = a.data_blocks(image)[10]
    at = content.index(image[victim * BLOCK : victim * BLOCK + 64])
    content[at + 5000] ^= 1
    path.write_bytes(content)
    point = b.push(image)
    assert b.sent == [victim]
    assert estate.content(point, b.id) == image


def test_a_source_that_is_gone_means_sending(estate: Estate) -> None:
    image = make_image(20, seed=1)
    a, b = Machine(estate, "a"), Machine(estate, "b")
    a.push(image)
    shutil.rmtree(estate.folder / "site" / a.id)
    point = b.push(image)
    assert (b.sent, b.copied) == (b.data_blocks(image), [])
    assert estate.content(point, b.id) == image


def test_a_source_that_takes_long_to_open_is_not_waited_for(estate: Estate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources_module, "OPEN_PATIENCE_SECONDS", 0.1)
    image = make_image(20, seed=1)
    a, b, c = (Machine(estate, name) for name in "abc")
    a.push(image)
    with estate.site._volumes.unchanged([VolumeKey(a.id, 0)]):  # as while a point is merged away
        b.push(image)
    assert (b.sent, b.copied) == (b.data_blocks(image), [])
    monkeypatch.setattr(sources_module, "OPEN_PATIENCE_SECONDS", PATIENCE_SECONDS)
    c.push(image)
    assert c.sent == []


def test_while_a_servers_lock_is_held_nothing_of_it_is_opened(estate: Estate) -> None:
    image = make_image(20, seed=1)
    a, b = Machine(estate, "a"), Machine(estate, "b")
    a.push(image)
    with estate.receiver.sessions.server_lock(a.id):
        b.push(image)
    assert b.sent == b.data_blocks(image)


def test_copying_does_not_keep_old_points_from_being_removed(estate: Estate) -> None:
    image = make_image(20, seed=1)
    a, b = Machine(estate, "a"), Machine(estate, "b")
    points = [a.push(image), a.push(image)]
    session = b.begin(image).session
    b.bring(session, image)  # a's newest point is open now
    retention = Retention(estate.receiver, estate.rows, NoRuns(), keep=1)
    assert retention.retain(a.id) == [points[0].id]
    assert estate.content(b.commit(session, image), b.id) == image


def test_a_copy_takes_no_space_that_is_to_be_left(estate: Estate) -> None:
    image = make_image(20, seed=1)
    a, b = Machine(estate, "a"), Machine(estate, "b")
    a.push(image)
    session = b.begin(image).session
    estate.receiver._reserve_bytes = 1 << 60
    with pytest.raises(StorageFull):
        b.bring(session, image)


def test_sources_are_closed_when_nobody_copies_any_more(estate: Estate, monkeypatch: pytest.MonkeyPatch) -> None:
    image = make_image(20, seed=1)
    a, b = Machine(estate, "a"), Machine(estate, "b")
    a.push(image)
    b.push(image)
    folder = estate.folder / "site" / a.id
    assert files_open_below(folder) != []
    monkeypatch.setattr(sources_module, "IDLE_SECONDS", 0.0)
    estate.receiver.dedupe.tend()
    assert files_open_below(folder) == []


def test_whatever_the_hints_say_every_point_is_what_was_pushed(estate: Estate) -> None:
    rng = seeded()
    pool = [rng.randbytes(BLOCK) for _ in range(24)] + [bytes(BLOCK)] * 4
    machines = [Machine(estate, name, tenant) for name, tenant in (("a", "one"), ("b", "one"), ("c", "two"))]
    for _ in range(12):
        machine = rng.choice(machines)
        image = b"".join(rng.choices(pool, k=rng.randrange(1, 24)))
        for _ in range(rng.randrange(12)):
            block = block_of(rng, machine, pool)
            estate.index.drop("one", [(block, place) for place in estate.index.find("one", [block]) if place])
            estate.index.add("one", f"srv-{rng.choice('abcd')}", rng.randrange(2), [rng.randrange(30)], block)
        point = machine.push(image)
        assert estate.content(point, machine.id) == image


def test_servers_that_copy_from_one_another_all_at_once_do_not_get_in_each_others_way(estate: Estate) -> None:
    rng = random.Random(1)
    pool = [rng.randbytes(BLOCK) for _ in range(40)]
    machines = [Machine(estate, name) for name in "abcd"]
    retention = Retention(estate.receiver, estate.rows, NoRuns(), keep=2)
    over = threading.Event()

    def push_often(machine: Machine) -> tuple[Point, bytes]:
        own = random.Random(machine.id)
        for _ in range(5):
            image = b"".join(own.sample(pool, k=30))
            point = machine.push(image)
        return point, image

    def keep_up() -> None:
        while not over.wait(0.05):
            estate.receiver.dedupe.tend()
            for machine in machines:
                retention.retain(machine.id)

    with ThreadPoolExecutor(5) as threads:
        upkeep = threads.submit(keep_up)
        try:
            pushed = [
                pushing.result(PATIENCE_SECONDS)
                for pushing in [threads.submit(push_often, machine) for machine in machines]
            ]
        finally:
            over.set()
        upkeep.result()
    for machine, (point, image) in zip(machines, pushed, strict=True):
        assert estate.content(point, machine.id) == image


class NoRuns:
    def claim(self, point_id: str) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


def block_of(rng: random.Random, machine: Machine, pool: list[bytes]) -> bytes:
    return machine.digests_of(rng.choice(pool))[0]


def files_open_below(folder: Path) -> list[str]:
    """What this process has open."""
    opened = [os.path.realpath(descriptor) for descriptor in Path("/proc/self/fd").iterdir()]
    return [path for path in opened if path.startswith(str(folder)) and path.endswith(".qcow2")]
