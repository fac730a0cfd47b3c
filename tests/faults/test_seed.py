"""A seed is carried on a disk: what it brings is worth as much as what was sent, and a wrong one harms nothing."""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.protocol.seedfile import SeedReader, SeedWriter
from tests.faults.harness import Agent, Ledger, Service, ended, enrolled, served
from tests.faults.images import change_image, make_image
from tests.faults.machine import mounted


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One for all: starting and stopping it takes longer than any seed."""
    with served(tmp_path_factory.mktemp("service")) as made:
        yield made


@pytest.fixture
def agent(tmp_path: Path, service: Service) -> Agent:
    return enrolled(tmp_path / "agent", service, f"web-{tmp_path.name[-40:]}")


@pytest.fixture
def seed(agent: Agent, image: Path, tmp_path: Path) -> Path:
    """A seed of the image, which the agent protects."""
    agent.protect(image)
    return seeded(agent, tmp_path / "web.seed")


def seeded(agent: Agent, file: Path) -> Path:
    document = agent.ask("seed", "--onto", file, "--json").document
    assert document["file_bytes"] == file.stat().st_size
    return file


def take_in(service: Service, seed: Path, *arguments: str) -> str:
    """The complaint of an import that must not succeed."""
    return service.ask("seed", "import", seed, *arguments).complaint


def test_after_a_seed_the_first_push_sends_only_what_changed_since(
    agent: Agent, image: Path, service: Service, ledger: Ledger, tmp_path: Path
) -> None:
    second = make_image(tmp_path / "data.raw", random.Random(2), (16 << 20) + 1536)
    agent.protect(image, second)
    seed = seeded(agent, tmp_path / "web.seed")
    taken = service.ask("seed", "import", seed, "--json").document
    assert taken["server"] == agent.server_name
    assert service.points(agent.server_name) == []
    with open(image, "r+b") as file:
        file.seek(1 << 20)
        file.write(random.Random(3).randbytes(65536))
    pushed = agent.push()
    assert pushed.document["changed_bytes"] <= 131072
    assert pushed.document["sent_bytes"] < 400_000
    ledger.reported(pushed, image, second)
    ledger.check(service)


@pytest.mark.long
def test_a_service_that_was_killed_after_the_import_still_has_it(
    agent: Agent, image: Path, seed: Path, service: Service, ledger: Ledger
) -> None:
    service.ask("seed", "import", seed, "--json").document  # noqa: B018  # asserts
    service.kill()
    service.start()
    pushed = agent.push()
    assert pushed.document["sent_bytes"] < 200_000
    ledger.reported(pushed, image)
    ledger.check(service)


@pytest.mark.long
def test_what_a_push_that_was_cut_had_brought_does_not_stay_among_a_seed(
    agent: Agent, image: Path, service: Service, ledger: Ledger, tmp_path: Path
) -> None:
    agent.protect(image)
    cut = agent.begin("push", "--json")
    cut.kill()
    ended(cut)
    change_image(image, random.Random(5), 30)
    seed = seeded(agent, tmp_path / "web.seed")
    service.stop()  # ends the session of the push that was cut, which else may go on for 10 s
    service.start()
    service.ask("seed", "import", seed, "--json").document  # noqa: B018  # asserts
    pushed = agent.push()
    assert pushed.document["sent_bytes"] < 200_000
    ledger.reported(pushed, image)
    ledger.check(service)


def test_a_seed_that_is_cut_short_says_so_and_the_push_sends_the_rest(
    agent: Agent, image: Path, seed: Path, service: Service, ledger: Ledger
) -> None:
    whole = seed.stat().st_size
    for kept in (whole - 1, whole // 2, 3):
        with open(seed, "r+b") as file:
            file.truncate(kept)
        assert "cut short" in take_in(service, seed)
    assert service.points(agent.server_name) == []
    ledger.reported(agent.push(), image)
    ledger.check(service)


def test_a_seed_that_was_altered_anywhere_is_refused(
    agent: Agent, image: Path, seed: Path, service: Service, ledger: Ledger
) -> None:
    rng = random.Random(7)
    whole = seed.read_bytes()
    for at in (40, rng.randrange(1000, len(whole) - 1000), len(whole) - 1):
        bad = bytearray(whole)
        bad[at] ^= 1 << rng.randrange(8)
        seed.write_bytes(bad)
        complaint = take_in(service, seed)
        assert "Traceback" not in complaint, at
    assert service.points(agent.server_name) == []
    ledger.reported(agent.push(), image)
    ledger.check(service)


def test_a_seed_goes_to_its_own_server_tenant_machine_and_service_only(seed: Path, service: Service) -> None:
    assert "protected here" in take_in(service, seed, "--tenant", "acme")
    with open(seed, "rb") as file:
        header = SeedReader(file).header
    for changed, words in (
        ({"ca_fingerprint": "0" * 64}, "another service"),
        ({"machine_id": "somebody-else"}, "machine somebody-else"),
        ({"server_id": "srv-0000000000"}, "protected here"),
    ):
        with open(seed, "wb") as file:
            SeedWriter(file, dataclasses.replace(header, **changed)).end(["0" * 64])
        assert words in take_in(service, seed)


def test_a_seed_is_for_the_time_before_the_first_point(
    agent: Agent, image: Path, seed: Path, service: Service, ledger: Ledger
) -> None:
    ledger.reported(agent.push(), image)
    assert "recovery points already" in take_in(service, seed)
    change_image(image, random.Random(9))
    ledger.reported(agent.push(), image)
    ledger.check(service)


@pytest.mark.long
def test_a_seed_is_not_taken_in_while_its_server_is_pushed(
    agent: Agent, image: Path, seed: Path, service: Service
) -> None:
    pushing = agent.begin("push", "--json")
    complaints = []
    while pushing.poll() is None:
        complaints.append(service.ask("seed", "import", seed))
    assert ended(pushing).code == 0
    assert all(ran.code in (0, 1) for ran in complaints)
    assert len(service.points(agent.server_name)) == 1


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small medium, which takes root")
def test_a_medium_that_is_too_small_is_one_clear_error_and_nothing_stays_on_it(
    agent: Agent, image: Path, tmp_path: Path
) -> None:
    agent.protect(image)
    with mounted("none", tmp_path / "medium", "-t", "tmpfs", "-o", "size=1m") as medium:
        assert "does not fit" in agent.ask("seed", "--onto", medium / "web.seed").complaint
        assert list(medium.iterdir()) == []


def test_a_seed_never_replaces_a_file_nor_appears_before_it_is_whole(agent: Agent, image: Path, tmp_path: Path) -> None:
    agent.protect(image)
    there = tmp_path / "there"
    there.write_text("precious")
    assert "is there already" in agent.ask("seed", "--onto", there).complaint
    assert there.read_text() == "precious"
    assert "No such file" in agent.ask("seed", "--onto", tmp_path / "no/folder/web.seed").complaint
    whole = seeded(agent, tmp_path / "whole.seed").stat().st_size
    seed = tmp_path / "web.seed"
    while True:
        writing = agent.begin("seed", "--onto", seed)
        writing.kill()
        ended(writing)
        if not seed.exists():
            break
        assert seed.stat().st_size == whole  # it was quicker than the kill
        seed.unlink()
