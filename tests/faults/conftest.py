from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.harness import Agent, Ledger, Service, enrolled, nothing_left_behind, served
from tests.faults.images import make_image


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with served(tmp_path / "service") as made:
        yield made
    assert nothing_left_behind(tmp_path) == []


@pytest.fixture
def agent(tmp_path: Path, service: Service) -> Agent:
    return enrolled(tmp_path / "agent", service, "web01")


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
