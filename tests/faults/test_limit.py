"""The bandwidth limit, by the real programs: it can be changed while a push runs, and volumes share it."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.protocol.digests import DIGEST_BYTES, ZERO_DIGEST
from tests.faults.harness import Agent, Ledger, Service, ended
from tests.faults.relay import Relay
from tests.patience import eventually

MIB = 1 << 20
LOOK_SECONDS = 4.0


@pytest.fixture
def relay(service: Service) -> Iterator[Relay]:
    with Relay(service.port) as made:
        yield made


@pytest.fixture
def agent(tmp_path: Path, service: Service, relay: Relay) -> Agent:
    made = Agent(tmp_path / "agent", service, url=relay.url)
    made.enroll("web01")
    return made


def disk(path: Path, mib: int) -> Path:
    """Nothing in it can be packed."""
    path.write_bytes(random.Random(path.name).randbytes(mib * MIB))
    return path


def test_a_limit_holds_for_the_push_that_runs_when_it_is_set_and_no_longer_when_it_is_lifted(
    agent: Agent, relay: Relay, tmp_path: Path, ledger: Ledger, service: Service
) -> None:
    image = disk(tmp_path / "disk.raw", 48)
    agent.protect(image)
    agent.ask("limit", "16mbit", "--json").document  # noqa: B018  # asserts
    push = agent.begin("push", "--json")
    eventually(lambda: relay.passed_bytes > 2 * MIB)
    agent.ask("limit", "256kbit", "--json").document  # noqa: B018  # asserts
    began, before_bytes = time.monotonic(), relay.passed_bytes
    time.sleep(LOOK_SECONDS)  # in which the old limit would let through four times as much as is asserted
    passed_bytes, seconds = relay.passed_bytes - before_bytes, time.monotonic() - began
    assert passed_bytes < 32_000 * seconds + 2 * MIB, "more than the new limit, and what was on its way"
    assert push.poll() is None
    agent.ask("limit", "none", "--json").document  # noqa: B018  # asserts
    ledger.reported(ended(push), image)  # what is left takes 20 minutes at the old limit, and nobody waits so long
    ledger.check(service)


def test_two_volumes_of_a_server_share_a_limited_line(
    agent: Agent, tmp_path: Path, ledger: Ledger, service: Service
) -> None:
    images = [disk(tmp_path / name, 16) for name in ("one.raw", "two.raw")]
    agent.protect(*images)
    agent.ask("limit", "16mbit", "--json").document  # noqa: B018  # asserts
    push = agent.begin("push", "--json")
    maps = [service.data / "receiver" / agent.server_id / f"{number}.digests" for number in range(2)]
    brought = eventually(lambda: found if sum(found := [blocks_in(one) for one in maps]) >= 240 else None)
    agent.ask("limit", "none", "--json").document  # noqa: B018  # asserts
    ledger.reported(ended(push), *images)
    assert min(brought) > sum(brought) / 3, f"blocks of either: {brought}"
    ledger.check(service)


def blocks_in(digests: Path) -> int:
    """How many blocks the receiver holds of a volume whose blocks are none of them zero."""
    if not digests.exists():
        return 0
    found = digests.read_bytes()
    return sum(found[at : at + DIGEST_BYTES] != ZERO_DIGEST for at in range(0, len(found), DIGEST_BYTES))
