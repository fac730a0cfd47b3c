"""What the line does to a push costs time, and nothing else."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.harness import Agent, Ledger, Service, ended
from tests.faults.images import change_image, make_image
from tests.faults.relay import Fault, Harm, Relay
from tests.patience import eventually


@pytest.fixture
def relay(service: Service) -> Iterator[Relay]:
    with Relay(service.port) as made:
        yield made


@pytest.fixture
def agent(tmp_path: Path, service: Service, relay: Relay) -> Agent:
    """All that this agent says goes through the relay."""
    made = Agent(tmp_path / "agent", service, url=relay.url)
    made.enroll("web01")
    return made


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return make_image(tmp_path / "disk.raw", random.Random(1), 24 << 20)


@pytest.mark.parametrize("harm", list(Harm))
def test_a_push_lives_through(
    harm: Harm, agent: Agent, relay: Relay, image: Path, ledger: Ledger, service: Service
) -> None:
    agent.protect(image)
    relay.arm(Fault(harm, after_bytes=1 << 20, seconds=1.5))
    ledger.reported(agent.push(), image)
    assert relay.struck.is_set()
    relay.disarm()
    change_image(image, random.Random(2))
    ledger.reported(agent.push(), image)
    ledger.check(service)


def test_a_cut_costs_no_more_than_what_the_line_carries_in_a_second(
    agent: Agent, relay: Relay, ledger: Ledger, service: Service, tmp_path: Path
) -> None:
    """So a line that is cut every ten seconds carries a tenth of it twice at most."""
    rng, rate = random.Random(5), 4_000_000
    image = tmp_path / "disk.raw"
    image.write_bytes(rng.randbytes(40 << 20))  # cannot be packed
    agent.protect(image)
    agent.ask("limit", f"{rate}B/s", "--json").document  # noqa: B018  # asserts
    push = agent.begin("push", "--json")
    for _ in range(3):
        relay.arm(Fault(Harm.RESET, after_bytes=rng.randrange(6 << 20, 10 << 20)))
        eventually(relay.struck.is_set)
    done = ended(push)
    ledger.reported(done, image)
    assert done.document["sent_bytes"] < image.stat().st_size * 1.02 + 3 * rate
    ledger.check(service)


@pytest.mark.parametrize("stale", [False, True])
@pytest.mark.parametrize("harm", [Harm.RESET, Harm.CORRUPT, Harm.DUPLICATE])
def test_a_pull_lives_through(
    harm: Harm, stale: bool, relay: Relay, agent: Agent, image: Path, ledger: Ledger, service: Service, tmp_path: Path
) -> None:
    """Onto a stale disk, of whose blocks the pages come, as well as onto one with other content."""
    agent.protect(image)
    ledger.reported(agent.push(), image)
    onto = make_image(tmp_path / "old.raw", random.Random(3), 24 << 20)
    if stale:
        shutil.copyfile(image, onto)
        rng = random.Random(4)
        with onto.open("r+b") as disk:
            for page in rng.sample(range(onto.stat().st_size // 4096), 200):
                disk.seek(page * 4096)
                disk.write(rng.randbytes(4096))
    relay.arm(Fault(harm, after_bytes=12_000 if stale else 5_000))  # offers have 3,000, sums 12,000
    agent.pull(onto).document  # noqa: B018  # asserts
    assert relay.struck.is_set()
    assert onto.read_bytes() == image.read_bytes()
    assert "Traceback" not in service.log()


@pytest.mark.long
def test_a_service_that_stays_away_is_one_clear_line_and_costs_nothing(
    protected: Agent, relay: Relay, image: Path, ledger: Ledger, service: Service
) -> None:
    service.kill()
    change_image(image, random.Random(4))
    complaint = protected.push().complaint
    assert relay.url in complaint
    service.start()
    ledger.reported(protected.push(), image)
    ledger.check(service)


@pytest.mark.long
def test_a_line_that_went_silent_for_ever_is_given_up_and_the_push_goes_on(
    agent: Agent, relay: Relay, image: Path, ledger: Ledger, service: Service
) -> None:
    agent.protect(image)
    relay.arm(Fault(Harm.HALF_OPEN, after_bytes=1 << 20, seconds=3600))  # far longer than an agent waits
    ledger.reported(agent.push(), image)
    assert relay.struck.is_set()
    ledger.check(service)
