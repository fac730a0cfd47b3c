"""The index is made again from the points that there are."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.receiver.dedupe.index import ContentIndex, Place
from service.receiver.dedupe.refill import refill
from service.receiver.dedupe.sources import Sources
from tests.service.receiver.dedupe.estate import Estate, Machine, make_image


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[ContentIndex]:
    index = ContentIndex.open(tmp_path / "another")
    assert index is not None
    yield index
    index.close()


@pytest.fixture
def sources(estate: Estate) -> Iterator[Sources]:
    made = Sources(estate.archive, estate.rows, lambda server_id: False)
    yield made
    made.close()


def test_it_knows_every_servers_newest_point_and_whose_it_is(
    estate: Estate, empty: ContentIndex, sources: Sources
) -> None:
    old, image = make_image(20, seed=1), make_image(20, seed=2)
    a, b = Machine(estate, "a"), Machine(estate, "b", tenant="other")
    a.push(old)
    a.push(image)
    b.push(old)
    refill(empty, estate.site, estate.archive, sources, threading.Event())
    new_digests = [a.digests_of(image)[block] for block in a.data_blocks(image)]
    old_digests = [a.digests_of(old)[block] for block in a.data_blocks(old)]
    assert empty.find("default", new_digests) == [Place(a.id, 0, block) for block in a.data_blocks(image)]
    assert empty.find("default", old_digests) == [None] * len(old_digests)
    assert empty.find("other", old_digests) == [Place(b.id, 0, block) for block in a.data_blocks(old)]
    assert not empty.wants_refill


def test_a_server_whose_point_is_damaged_is_left_out(estate: Estate, empty: ContentIndex, sources: Sources) -> None:
    image = make_image(20, seed=1)
    a, b = Machine(estate, "a"), Machine(estate, "b", tenant="other")
    point = a.push(image)
    b.push(image)
    estate.site.write_document(a.id, f"{point.id}.json", b"{}")
    refill(empty, estate.site, estate.archive, sources, threading.Event())
    digest = a.digests_of(image)[a.data_blocks(image)[0]]
    assert (empty.find("default", [digest]), empty.wants_refill) == ([None], False)
    assert empty.find("other", [digest]) != [None]


def test_one_that_is_stopped_is_wanted_again(estate: Estate, empty: ContentIndex, sources: Sources) -> None:
    Machine(estate, "a").push(make_image(20, seed=1))
    stop = threading.Event()
    stop.set()
    refill(empty, estate.site, estate.archive, sources, stop)
    assert empty.wants_refill
