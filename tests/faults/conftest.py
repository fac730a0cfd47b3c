from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.harness import Agent, Ledger, Service, nothing_left_behind
from tests.faults.images import make_image


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """A running service; afterwards nothing of it may be left."""
    made = Service(tmp_path / "service")
    made.start()
    yield made
    code = made.stop()
    assert "Traceback" not in made.log(), made.log()[-8000:]
    assert code == 0, made.log()[-4000:]
    assert nothing_left_behind(tmp_path) == []


@pytest.fixture
def agent(tmp_path: Path, service: Service) -> Agent:
    """An agent of the service, with an identity."""
    made = Agent(tmp_path / "agent", service)
    made.enroll("web01")
    return made


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return make_image(tmp_path / "disk.raw", random.Random(1))


@pytest.fixture
def ledger(agent: Agent, tmp_path: Path) -> Ledger:
    return Ledger(agent, tmp_path)


@pytest.fixture
def protected(agent: Agent, image: Path, ledger: Ledger) -> Agent:
    """An agent with one image and one recovery point of it."""
    agent.protect(image)
    ledger.reported(agent.push(), image)
    return agent
