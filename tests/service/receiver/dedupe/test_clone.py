"""Real processes: what one server of a tenant brought is not sent again by another, whatever happens in between."""

from __future__ import annotations

import random
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest

from tests.faults.harness import Agent, Ledger, Ran, Service, ended, nothing_left_behind, served
from tests.faults.images import BLOCK, make_image
from tests.patience import PATIENCE_SECONDS

SIZE_BYTES = 24 << 20
FEW_BYTES = 150_000
"""On the wire, for a push that sends no blocks."""


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with served(tmp_path / "service") as made:
        yield made
    assert nothing_left_behind(tmp_path) == []


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return make_image(tmp_path / "disk.raw", random.Random(1), SIZE_BYTES)


def protecting(image: Path, service: Service, name: str, tenant: str = "default") -> Agent:
    agent = Agent(image.parent / f"agent-{name}", service)
    assert agent.ask("enroll", service.url, service.token("--name", name, "--tenant", tenant), "--json").code == 0
    agent.protect(image)
    return agent


def proven(agent: Agent, image: Path, pushed: Ran) -> int:
    """The push succeeded, and every way of reading its point gives the image. Returns the bytes on the wire."""
    ledger = Ledger(agent, image.parent)
    ledger.reported(pushed, image)
    ledger.check(agent.service)
    return int(pushed.document["sent_bytes"])


def test_a_clone_sends_next_to_nothing(service: Service, image: Path) -> None:
    assert protecting(image, service, "web01").push().document["deduplicated_bytes"] == 0
    with open(image, "r+b") as file:
        file.seek(100 * BLOCK)
        file.write(random.Random(2).randbytes(BLOCK))
    clone = protecting(image, service, "web02")
    pushed = clone.push()
    assert proven(clone, image, pushed) < BLOCK + FEW_BYTES
    assert pushed.document["deduplicated_bytes"] > SIZE_BYTES / 2


def test_another_tenants_server_sends_all_of_it(service: Service, image: Path) -> None:
    sent_bytes = protecting(image, service, "web01").push().document["sent_bytes"]
    stranger = protecting(image, service, "web01", tenant="other").push().document
    assert stranger["deduplicated_bytes"] == 0
    assert stranger["sent_bytes"] > 0.99 * sent_bytes > 10 * FEW_BYTES


def test_what_was_known_when_the_service_was_killed_is_known_when_it_starts(service: Service, image: Path) -> None:
    protecting(image, service, "web01").push().document  # noqa: B018  # asserts
    clone = protecting(image, service, "web02")
    service.kill()
    service.start()
    assert proven(clone, image, clone.push()) < FEW_BYTES


@pytest.mark.long
def test_a_copy_that_was_cut_by_the_services_death_is_put_right_by_the_next(service: Service, image: Path) -> None:
    protecting(image, service, "web01").push().document  # noqa: B018  # asserts
    clone = protecting(image, service, "web02")
    pushing = clone.begin("push", "--json")
    head = service.chain(clone.server_id) / "head.qcow2"
    limit = time.monotonic() + PATIENCE_SECONDS
    while not (head.exists() and head.stat().st_size > 2 << 20) and pushing.poll() is None:
        assert time.monotonic() < limit
    service.kill()
    service.start()
    ledger = Ledger(clone, image.parent)
    ledger.reported(ended(pushing), image)  # it has the patience to begin again
    ledger.check(service)


@pytest.mark.long
def test_hints_that_are_all_wrong_do_no_harm(service: Service, image: Path) -> None:
    protecting(image, service, "web01").push().document  # noqa: B018  # asserts
    service.stop()
    with lmdb.open(str(service.data / "dedupe"), map_size=1 << 30, max_dbs=2) as environment:
        hints = environment.open_db(b"hints")
        with environment.begin(db=hints, write=True) as transaction:
            keys, places = zip(*transaction.cursor(), strict=True)
            for key, place in zip(keys, random.Random(1).sample(places, len(places)), strict=True):
                transaction.put(key, place)
    service.start()
    clone = protecting(image, service, "web02")
    assert proven(clone, image, clone.push()) > 10 * FEW_BYTES
    assert protecting(image, service, "web03").push().document["sent_bytes"] < FEW_BYTES


@pytest.mark.long
def test_a_source_that_was_taken_away_means_sending(service: Service, image: Path) -> None:
    source = protecting(image, service, "web01")
    source.push().document  # noqa: B018  # asserts
    shutil.rmtree(service.data / "site" / source.server_id)
    clone = protecting(image, service, "web02")
    assert proven(clone, image, clone.push()) > 10 * FEW_BYTES


@pytest.mark.long
def test_an_index_that_was_lost_is_filled_from_the_points(service: Service, image: Path) -> None:
    protecting(image, service, "web01").push().document  # noqa: B018  # asserts
    service.stop()
    shutil.rmtree(service.data / "dedupe")
    service.start()
    limit = time.monotonic() + PATIENCE_SECONDS
    while not re.search(r"dedupe index knows [1-9]", service.log()):
        assert time.monotonic() < limit
        time.sleep(0.2)
    clone = protecting(image, service, "web02")
    assert proven(clone, image, clone.push()) < FEW_BYTES
