"""Our panic beside booting the same image with the same QEMU command line by hand."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.by_hand import ByHand, command_line
from bench.measure import BenchError, timed
from bench.service import PROGRAMS, Service, agent_command, enroll
from demo.building import BuildError
from demo.image import build

REPOSITORY = Path(__file__).resolve().parent.parent
PLAN = REPOSITORY / "demo/web01.yaml"
LIMIT_SECONDS = 5.0
PROBE_PATIENCE_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Boots:
    """Medians, in seconds: of the whole panic command, of the time to recovery it states, and by hand."""

    accel: str
    command_seconds: float
    rto_seconds: float
    by_hand_seconds: float

    @property
    def overhead_seconds(self) -> float:
        return self.command_seconds - self.by_hand_seconds


def measure(work: Path, rounds: int, report: Callable[[str], None]) -> Boots:
    """Raises BenchError; also when the demonstration's image cannot be built here."""
    try:
        image = build(REPOSITORY / ".cache", report)
    except BuildError as error:
        raise BenchError(f"the image to boot: {error}") from None
    commands, rtos, by_hand = [], [], []
    with Service(work / "service", os.environ.get("UNDERSTUDY_ACCEL")) as service:
        enroll(service, work / "agent", "web01", image)
        timed(agent_command(work / "agent", "push", "--json"))
        service.ask("plan", "apply", PLAN)
        _await_probe(service)
        for number in range(1, rounds + 1):
            seconds, rto_seconds, line = _panic(service)
            commands.append(seconds)
            rtos.append(rto_seconds)
            by_hand.append(_boot(image, line, work / "by-hand"))
            report(f"round {number}/{rounds}: panic {seconds:.1f} s, by hand {by_hand[-1]:.1f} s")
    return Boots(
        accel="kvm" if "kvm" in line else "tcg",
        command_seconds=statistics.median(commands),
        rto_seconds=statistics.median(rtos),
        by_hand_seconds=statistics.median(by_hand),
    )


def _await_probe(service: Service) -> None:
    """At its start a service tries out hardware acceleration; let that be over."""
    if os.environ.get("UNDERSTUDY_ACCEL") or not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return
    deadline = time.monotonic() + PROBE_PATIENCE_SECONDS
    while not (service.data / "site/accel.json").exists():
        if time.monotonic() > deadline:
            raise BenchError("the service does not end its trial of hardware acceleration")
        time.sleep(0.5)


def _panic(service: Service) -> tuple[float, float, list[str]]:
    """One drill: the command's seconds, the run's rto_seconds, and the QEMU command line of what was booted."""
    done = timed([PROGRAMS / "understudy", "panic", "web01", "--drill", "--yes", "--data", service.data, "--json"])
    run = json.loads(done.out)
    try:
        line = command_line(next((service.data / "site/instances").glob("*/pid")))
    finally:
        service.ask("end", run["id"])
    return done.seconds, float(run["rto_seconds"]), line


def _boot(image: Path, line: list[str], folder: Path) -> float:
    """The same command line on an overlay of the raw image: seconds until the application answers."""
    os.sync()
    began = time.monotonic()
    with ByHand(line, image, folder) as machine:
        machine.await_answer("/health")
        return time.monotonic() - began
