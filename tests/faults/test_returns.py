"""Who comes back: an agent after weeks, a receiver from a backup, a disk that was replaced.

Each ends in the least work that is right: what counts as changed and what passes the line is what really differs."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.harness import Agent, Ledger, Service, enrolled, served
from tests.faults.images import BLOCK, make_image

SIZE = 16 << 20
DIGESTS_BYTES = SIZE // BLOCK * 40
"""What it takes to offer every block of the image: index and digest of each."""
CHATTER_BYTES = 64 << 10
"""Handshakes, JSON, headers."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with served(tmp_path_factory.mktemp("service"), "--keep", "3") as made:
        yield made


@pytest.fixture
def agent(tmp_path: Path, service: Service) -> Agent:
    return enrolled(tmp_path / "agent", service, f"web-{tmp_path.name[-40:]}")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return make_image(tmp_path / "disk.raw", random.Random(1), SIZE)


@pytest.fixture
def ledger(agent: Agent, tmp_path: Path) -> Ledger:
    return Ledger(agent, tmp_path, keep=3)


def overwrite(image: Path, blocks: list[int], seed: int) -> int:
    """Fill these blocks with what cannot be compressed; returns how many bytes that are."""
    rng = random.Random(seed)
    with open(image, "r+b") as file:
        for block in blocks:
            file.seek(block * BLOCK)
            file.write(rng.randbytes(BLOCK))
    return len(blocks) * BLOCK


def sends(agent: Agent, image: Path, ledger: Ledger, changed_bytes: int, beside_bytes: int) -> None:
    """Its next push finds so much changed, sends that and little beside it, and makes a point that is right."""
    pushed = agent.push()
    assert pushed.document["changed_bytes"] == changed_bytes
    assert pushed.document["sent_bytes"] < changed_bytes + beside_bytes
    ledger.reported(pushed, image)
    ledger.check(agent.service)


@pytest.mark.long
def test_an_agent_that_comes_back_after_weeks_sends_what_changed_since(
    protected: Agent, image: Path, ledger: Ledger, service: Service
) -> None:
    service.kill()  # the weeks see restarts, too
    service.start()
    changed = overwrite(image, list(range(0, 250, 5)), 2)
    sends(protected, image, ledger, changed, CHATTER_BYTES)


def test_an_agent_that_lost_its_cache_sends_digests_and_what_changed(
    protected: Agent, image: Path, ledger: Ledger
) -> None:
    shutil.rmtree(protected.folder / "volumes")
    changed = overwrite(image, [7, 8, 200], 2)
    sends(protected, image, ledger, changed, DIGESTS_BYTES + CHATTER_BYTES)


def test_a_cache_that_is_wrong_is_noticed_before_it_is_trusted(
    protected: Agent, image: Path, ledger: Ledger, service: Service
) -> None:
    (cached,) = (protected.folder / "volumes").glob("*/digests")
    with open(cached, "r+b") as file:
        file.seek(100 * 32)
        file.write(b"\xff" * 32)
    changed = overwrite(image, [100], 2)
    pushed = protected.push()
    assert pushed.document["changed_bytes"] == changed
    ledger.reported(pushed, image)
    ledger.check(service)


@pytest.mark.long
@pytest.mark.parametrize("restored", ["everything", "site", "database", "receiver"])
def test_a_receiver_restored_from_yesterdays_backup_gets_what_it_lacks_and_no_more(
    agent: Agent, image: Path, ledger: Ledger, service: Service, tmp_path: Path, restored: str
) -> None:
    """All of it, or only a part: what the site holds is what counts, and all else follows it."""
    agent.protect(image)
    yesterday = ledger.reported(agent.push(), image)
    service.stop()
    backup = tmp_path / "backup"
    shutil.copytree(service.data, backup, symlinks=True)
    service.start()
    changed = overwrite(image, [1, 2, 3, 240], 2)
    today = ledger.reported(agent.push(), image)
    service.kill()
    put_back(service.data, backup, restored)
    service.start()
    listed = [point["id"] for point in service.points(agent.server_name)]
    if restored in ("everything", "site"):
        assert listed == [yesterday]
        del ledger.sums[today]  # made after the backup
    else:
        assert listed == [today, yesterday]
        changed = 0
    changed += overwrite(image, [50], 3)
    sends(agent, image, ledger, changed, DIGESTS_BYTES + CHATTER_BYTES)


def put_back(data: Path, backup: Path, what: str) -> None:
    """A part of the service's folder becomes what it was."""
    patterns = {"everything": "*", "site": "site", "receiver": "receiver", "database": "understudy.sqlite*"}
    for path in data.glob(patterns[what]):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in backup.glob(patterns[what]):
        if path.is_dir():
            shutil.copytree(path, data / path.name, symlinks=True)
        else:
            shutil.copy2(path, data / path.name)


def test_a_replaced_disk_with_the_same_content_elsewhere_costs_digests_and_no_content(
    agent: Agent, image: Path, ledger: Ledger, tmp_path: Path
) -> None:
    """The path is the volume's identity: a symlink leads to another disk from now on."""
    link = tmp_path / "disk"
    link.symlink_to(image)
    agent.protect(link)
    ledger.reported(agent.push(), image)
    new = tmp_path / "new.raw"
    shutil.copyfile(image, new)
    changed = overwrite(new, [10, 11], 4)
    link.unlink()
    link.symlink_to(new)
    sends(agent, new, ledger, changed, DIGESTS_BYTES + CHATTER_BYTES)


@pytest.mark.long
def test_a_replaced_disk_that_is_larger_and_empty_is_taken_as_it_is(
    agent: Agent, image: Path, ledger: Ledger, service: Service, tmp_path: Path
) -> None:
    link = tmp_path / "disk"
    link.symlink_to(image)
    agent.protect(link)
    ledger.reported(agent.push(), image)
    new = tmp_path / "new.raw"
    with open(new, "wb") as file:
        file.truncate(2 * SIZE)
    overwrite(new, [500], 5)
    link.unlink()
    link.symlink_to(new)
    pushed = agent.push()
    assert pushed.document["sent_bytes"] < BLOCK + 2 * DIGESTS_BYTES + CHATTER_BYTES
    ledger.reported(pushed, new)
    ledger.check(service)


@pytest.mark.long
def test_a_replacement_machine_that_restored_the_disk_sends_what_differs(
    protected: Agent, image: Path, ledger: Ledger, service: Service, tmp_path: Path
) -> None:
    """A new enrolment under the same name: no cache at all, and the replica is found by digests."""
    again = Agent(tmp_path / "again", service)
    again.enroll(protected.server_name)
    again.protect(image)
    assert json.loads((again.folder / "identity.json").read_text())["server_id"] == protected.server_id
    changed = overwrite(image, [9], 6)
    sends(again, image, ledger, changed, DIGESTS_BYTES + CHATTER_BYTES)


def test_a_sparse_disk_whose_cache_was_lost_costs_offers_where_it_changed_alone(
    agent: Agent, ledger: Ledger, tmp_path: Path
) -> None:
    """Of 4 GiB with three islands of data; offers of all its blocks alone would be 2.5 MiB."""
    image = tmp_path / "sparse.raw"
    with open(image, "wb") as file:
        file.truncate(4 << 30)
    overwrite(image, [0, 1, 2, *range(20_000, 20_030), *range(65_500, 65_536)], 7)
    agent.protect(image)
    ledger.reported(agent.push(), image)
    shutil.rmtree(agent.folder / "volumes")
    changed = overwrite(image, [20_010], 8)
    sends(agent, image, ledger, changed, 1024 * 40 + CHATTER_BYTES)
