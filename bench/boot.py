"""Our panic beside booting the same image with the same QEMU command line by hand."""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.measure import BenchError, environment, timed
from bench.peers import free_port
from bench.service import PROGRAMS, Service, agent_command, enroll
from demo.building import BuildError
from demo.image import build

REPOSITORY = Path(__file__).resolve().parent.parent
PLAN = REPOSITORY / "demo/web01.yaml"
LIMIT_SECONDS = 5.0
BOOT_PATIENCE_SECONDS = 600.0
PROBE_PATIENCE_SECONDS = 60.0
POLL_SECONDS = 0.1


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
        pid = int(next((service.data / "site/instances").glob("*/pid")).read_text())
        line = Path(f"/proc/{pid}/cmdline").read_bytes().decode().rstrip("\0").split("\0")
    finally:
        service.ask("end", run["id"])
    return done.seconds, float(run["rto_seconds"]), line


def _boot(image: Path, line: list[str], folder: Path) -> float:
    """The same command line on an overlay of the raw image: seconds until the application answers."""
    instance = str(Path(line[line.index("-pidfile") + 1]).parent)
    network = next(argument for argument in line if "hostfwd=" in argument)
    theirs = network.partition("hostfwd=tcp:127.0.0.1:")[2].partition("-")[0]
    ours = str(free_port())
    command = [
        argument.replace(instance, str(folder)).replace(f"127.0.0.1:{theirs}-", f"127.0.0.1:{ours}-")
        for argument in line
    ]
    folder.mkdir()
    os.sync()
    began = time.monotonic()
    overlay = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(image), "-F", "raw", str(folder / "volume-0.qcow2")]
    subprocess.run(overlay, check=True)
    subprocess.run(command, check=True, cwd=folder, env=environment({}), capture_output=True)
    with _ended(folder / "pid"):
        while not _answers(f"http://127.0.0.1:{ours}/health"):
            if time.monotonic() - began > BOOT_PATIENCE_SECONDS:
                raise BenchError(f"the image does not come up by hand in {BOOT_PATIENCE_SECONDS:.0f} s")
            time.sleep(POLL_SECONDS)
        seconds = time.monotonic() - began
    shutil.rmtree(folder)
    return seconds


@contextmanager
def _ended(pid_file: Path) -> Iterator[None]:
    """The daemon of `pid_file` is gone afterwards."""
    pid = int(pid_file.read_text())
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        while Path(f"/proc/{pid}").exists():
            time.sleep(0.05)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False
