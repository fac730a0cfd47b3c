"""Many agents that push at once into one receiver, beside one of them that pushes alone.

Another server of the tenant was pushed before, so that whatever comes is looked up among what is there, for all alike.
Real agents, each a process of its own with a disk of its own that cannot be compressed, started before the clock and
let go together; none ends before all have pushed, since to end an interpreter is no part of a push. Meanwhile an
operator asks the API all the time. Agents run at nice 19: elsewhere each has a machine of its own, and here 50 of them
must not take the processors from the one service that is measured. What they take is counted, and shown beside the
figures.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import random
import ssl
import statistics
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from agent.identity import enroll
from agent.state import State
from bench.measure import BenchError, anonymous_mib, descendants, processor_seconds
from bench.service import Service

MIB = 1 << 20
LEAST_SHARE, LEAST_FAIRNESS, MOST_P99_SECONDS, MOST_MIB = 0.8, 0.5, 0.25, 250
MOST_SECONDS = 500.0
ALONE = 5
"""So many agents with a disk like all others push alone, one after another: their median counts."""
LARGE = 8
"""Another has a disk so many times as large, for what a push costs beside its start and its end."""

PUSH = """
import asyncio, json, resource, sys, time
from pathlib import Path
from agent.client import ServiceClient
from agent.protocol.buffers import keep_large_buffers
from agent.push.push import push
from agent.state import State
def used():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
async def main():
    state = State(Path(sys.argv[1]))
    async with ServiceClient.of(state) as client:
        print("ready", flush=True)
        sys.stdin.readline()
        began, before = time.monotonic(), used()
        await push(state, client)
        print(json.dumps([began, time.monotonic(), used() - before]), flush=True)
        sys.stdin.readline()
keep_large_buffers()
asyncio.run(main())
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """What some agents did together. `speeds` are MiB of disk a second, one an agent; processor times are seconds,
    `service_cpu` with that of the tools it ran."""

    mib: int
    seconds: float
    speeds: tuple[float, ...]
    agents_cpu: float
    service_cpu: float

    @property
    def rate(self) -> float:
        """MiB of disk a second, all together."""
        return self.mib / self.seconds

    @property
    def fairness(self) -> float:
        """The slowest by the median."""
        return min(self.speeds) / statistics.median(self.speeds)

    @property
    def cpu_seconds_a_gib(self) -> tuple[float, float]:
        """Of the agents, and of the service."""
        return self.agents_cpu * 1024 / self.mib, self.service_cpu * 1024 / self.mib

    @property
    def processors(self) -> float:
        """How many were busy with it."""
        return (self.agents_cpu + self.service_cpu) / self.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Crowd:
    """`answers` are the seconds that the API took for each answer meanwhile."""

    agents: int
    alone: Pushed
    large: Pushed
    crowd: Pushed
    answers: tuple[float, ...]
    service_mib: int

    @property
    def share(self) -> float:
        """The crowd's throughput by that of one of its agents alone."""
        return self.crowd.rate / self.alone.rate

    @property
    def failed(self) -> int:
        return self.agents - len(self.crowd.speeds)

    @property
    def p99_seconds(self) -> float:
        return statistics.quantiles(self.answers, n=100)[98]


def measure(work: Path, agents: int, mib: int, report: Callable[[str], None] = lambda _: None) -> Crowd:
    """Raises BenchError."""
    with Service(work / "service", "tcg") as service:
        states = [work / f"agent-{number}" for number in range(agents)]
        disks = [_disk(work / f"disk-{number}.img", mib, number) for number in range(agents)]
        large = work / "large"
        alone = [work / f"alone-{number}" for number in range(ALONE + 1)]  # the first of them is the tenant's first
        others = {folder: _disk(folder.with_suffix(".img"), mib, -number) for number, folder in enumerate(alone, 1)}
        others[large] = _disk(large.with_suffix(".img"), LARGE * mib, agents)
        asyncio.run(_enrolled(service, {**dict(zip(states, disks, strict=True)), **others}))
        report(f"service {service.pid}: alone")
        ones = [_pushed(service, [folder], mib) for folder in alone][1:]
        much = _pushed(service, [large], LARGE * mib)
        report("crowd")
        with _Asking(service) as asking, _Peak(service.pid) as peak:
            many = _pushed(service, states, mib)
        return Crowd(
            agents=agents,
            alone=sorted(ones, key=lambda one: one.rate)[ALONE // 2],
            large=much,
            crowd=many,
            answers=tuple(asking.seconds),
            service_mib=peak.mib,
        )


def _disk(path: Path, mib: int, seed: int) -> Path:
    rng = random.Random(seed)
    with path.open("wb") as file:
        for _ in range(0, mib, 4):
            file.write(rng.randbytes(4 * MIB))
    return path


async def _enrolled(service: Service, protecting: dict[Path, Path]) -> None:
    """An agent for each state folder, which protects that disk."""
    operator = Operator(service)
    for folder, disk in protecting.items():
        token = json.loads(operator.ask("POST", "/api/v1/enroll-tokens", {"name": folder.name}))["token"]
        await enroll(State(folder), service.url, token)
        State(folder).protect([str(disk)])
    operator.close()


def _pushed(service: Service, states: list[Path], mib_each: int) -> Pushed:
    """All agents push together; those that fail are left out."""
    running = [
        subprocess.Popen(
            ["nice", "-n", "19", sys.executable, "-c", PUSH, str(state)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            cwd=Path(__file__).parents[1],
        )
        for state in states
    ]  # fmt: skip

    def end() -> None:
        for process in running:
            process.kill()
            process.wait()

    patience = threading.Timer(MOST_SECONDS, end)
    try:
        for process in running:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                raise BenchError("an agent of the crowd did not start")
        os.sync()
        before = processor_seconds(service.pid)
        for process in running:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        patience.start()
        ended = [json.loads(line) for process in running if process.stdout and (line := process.stdout.readline())]
    finally:
        patience.cancel()
        end()
    if not ended:
        raise BenchError("no agent could push")
    return Pushed(
        mib=len(ended) * mib_each,
        seconds=max(end for _, end, _ in ended) - min(begin for begin, _, _ in ended),
        speeds=tuple(mib_each / (end - begin) for begin, end, _ in ended),
        agents_cpu=sum(used for _, _, used in ended),
        service_cpu=processor_seconds(service.pid) - before,
    )


class Operator:
    """An operator's requests, on one connection."""

    def __init__(self, service: Service) -> None:
        parts = urllib.parse.urlsplit(service.url)
        context = ssl.create_default_context(cafile=str(service.data / "pki/ca.pem"))
        context.check_hostname = False
        self._headers = {"Authorization": f"Bearer {(service.data / 'admin-token').read_text().strip()}"}
        self._line = http.client.HTTPSConnection(str(parts.hostname), parts.port, context=context, timeout=60)

    def ask(self, method: str, path: str, message: object = None) -> bytes:
        """The answer's body. Raises BenchError."""
        body = None if message is None else json.dumps(message).encode()
        self._line.request(method, path, body, self._headers)
        answer = self._line.getresponse()
        content = answer.read()
        if answer.status >= 400:
            raise BenchError(f"{method} {path}: {content.decode()}")
        return content

    def close(self) -> None:
        self._line.close()


class _Asking:
    """An operator who asks for the list of servers, again and again."""

    def __init__(self, service: Service) -> None:
        self.seconds: list[float] = []
        self._operator = Operator(service)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._operator.close()

    def _ask(self) -> None:
        while not self._stop.wait(0.05):
            began = time.monotonic()
            self._operator.ask("GET", "/api/v1/servers")
            self.seconds.append(time.monotonic() - began)


class _Peak:
    """The most anonymous memory that a process and its children had, looked at ten times a second."""

    def __init__(self, pid: int) -> None:
        self.mib = 0
        self._pid = pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.1):
            children = filter(self._is_other, descendants(self._pid))
            self.mib = max(self.mib, int(sum(map(anonymous_mib, [self._pid, *children]))))

    def _is_other(self, child: int) -> bool:
        """A child that has not become its own program yet still has its parent's memory."""
        with contextlib.suppress(OSError):
            return Path(f"/proc/{child}/exe").readlink() != Path(f"/proc/{self._pid}/exe").readlink()
        return False


def rows(found: Crowd) -> list[tuple[str, str, str, bool | None]]:
    """What, figure, limit, whether it holds (None: there is no limit)."""
    agents_alone, service_alone = found.alone.cpu_seconds_a_gib
    agents_large, service_large = found.large.cpu_seconds_a_gib
    agents_crowd, service_crowd = found.crowd.cpu_seconds_a_gib
    each = found.crowd.mib // len(found.crowd.speeds)
    both = f"{found.crowd.rate:.0f} MiB/s, one alone {found.alone.rate:.0f}: {found.share:.2f}"
    fair, p99, mib = found.crowd.fairness, found.p99_seconds, found.service_mib
    most = f"< {MOST_P99_SECONDS * 1000:.0f} ms"
    return [
        (f"{found.agents} agents at once, {each} MiB each", both, f">= {LEAST_SHARE}", found.share >= LEAST_SHARE),
        ("slowest by the median", f"{fair:.2f}", f">= {LEAST_FAIRNESS}", fair >= LEAST_FAIRNESS),
        (f"API meanwhile, p99 of {len(found.answers)}", f"{p99 * 1000:.0f} ms", most, p99 < MOST_P99_SECONDS),
        ("failed sessions", str(found.failed), "0", not found.failed),
        (
            "anonymous memory of the service and its children, at most",
            f"{mib} MiB",
            f"<= {MOST_MIB} MiB",
            mib <= MOST_MIB,
        ),
        ("processor s a GiB, crowd: agents, service", f"{agents_crowd:.2f}, {service_crowd:.2f}", "", None),
        ("processor s a GiB, alone: agent, service", f"{agents_alone:.2f}, {service_alone:.2f}", "", None),
        ("processors busy: crowd, alone", f"{found.crowd.processors:.2f}, {found.alone.processors:.2f}", "", None),
        (f"one alone with {found.large.mib} MiB", f"{found.large.rate:.0f} MiB/s", "", None),
        ("processor s a GiB, that one: agent, service", f"{agents_large:.2f}, {service_large:.2f}", "", None),
    ]
