"""Memory does not depend on the disk's size: a disk of a tebibyte, nearly all of it holes."""

from __future__ import annotations

import random
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.harness import Agent, Service, ended, enrolled, served
from tests.faults.images import BLOCK

SIZE = 1 << 40
AGENT_MIB, SERVICE_MIB = 150, 250

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with served(tmp_path / "service") as made:
        yield made


@pytest.fixture
def agent(tmp_path: Path, service: Service) -> Agent:
    made = enrolled(tmp_path / "agent", service, "large")
    image = tmp_path / "disk.raw"
    with open(image, "wb") as file:
        file.truncate(SIZE)
    scatter(image, 1)
    made.protect(image)
    return made


def scatter(image: Path, seed: int) -> None:
    rng = random.Random(seed)
    with open(image, "r+b") as file:
        for _ in range(400):
            file.seek(rng.randrange(SIZE // BLOCK) * BLOCK)
            file.write(rng.randbytes(BLOCK))
        file.seek(rng.randrange(SIZE // 2))
        file.write(rng.randbytes(32 << 20))


def anonymous_mib(pid: int) -> int:
    """0 of a process that has ended."""
    try:
        found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) >> 10 if found else 0


def push(agent: Agent) -> None:
    process = agent.begin("push", "--json")
    peaks = peaks_of(process, agent.service)
    assert ended(process).code == 0
    assert peaks[0] <= AGENT_MIB
    assert peaks[1] <= SERVICE_MIB


def peaks_of(process: subprocess.Popen[str], service: Service) -> tuple[int, int]:
    """The most that it and the service had at once, in MiB, until it ended."""
    own, others = 0, 0
    while process.poll() is None:
        own, others = max(own, anonymous_mib(process.pid)), max(others, anonymous_mib(service.pid))
        time.sleep(0.02)
    return own, others


def test_neither_side_of_a_push_takes_more_for_a_larger_disk(agent: Agent, service: Service) -> None:
    push(agent)
    scatter(Path(agent.folder.parent / "disk.raw"), 2)
    service.kill()
    service.start()
    push(agent)
    assert service.ask("verify", "--all").code == 0
    assert anonymous_mib(service.pid) <= SERVICE_MIB
