"""Push and pull of one image, by us and by the peers in turn, round after round."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from bench.borg import Borg
from bench.measure import BenchError, Cost, median, timed
from bench.peers import Restic, Rsync
from bench.service import Understudy
from bench.workload import Workload

STEPS = {
    "full": "full push",
    "again": "push, nothing changed",
    "day": "push, a day's change",
    "pull-empty": "pull onto an empty file",
    "pull-yesterday": "pull onto yesterday's image",
}
PEERS = (Borg, Restic, Rsync)
CONTENDERS = (Understudy, *PEERS)
DISK = "the disk alone: read, written, read back"
READERS = {"data": "read + BLAKE3, one thread", "threads": "read + BLAKE3, two threads"}


class Contender(Protocol):
    """Somebody who replicates a file and brings it back."""

    def push(self) -> Cost: ...

    def target(self, folder: Path) -> Path:
        """Where `pull` puts the image below `folder`."""
        ...

    def pull(self, folder: Path) -> Cost: ...

    def close(self) -> None: ...


@dataclass
class Replication:
    """Costs by (contender or reader, step), one a round."""

    costs: dict[tuple[str, str], list[Cost]] = field(default_factory=dict)

    def note(self, name: str, step: str, cost: Cost) -> None:
        self.costs.setdefault((name, step), []).append(cost)

    def median(self, name: str, step: str) -> Cost | None:
        costs = self.costs.get((name, step))
        return median(costs) if costs else None


def measure(workload: Workload, work: Path, rounds: int, report: Callable[[str], None]) -> Replication:
    """Raises BenchError; also when what somebody brought back is not what was pushed."""
    found = Replication()
    for number in range(1, rounds + 1):
        folder = work / f"round-{number}"
        _Round(workload, folder, found, functools.partial(_say, report, f"round {number}/{rounds}")).run()
        shutil.rmtree(folder)
    return found


def _say(report: Callable[[str], None], prefix: str, line: str) -> None:
    report(f"{prefix}: {line}")


class _Round:
    """All contenders with fresh repositories, step by step."""

    def __init__(self, workload: Workload, folder: Path, found: Replication, report: Callable[[str], None]) -> None:
        self._workload = workload
        self._folder = folder
        self._found = found
        self._report = report
        self._source = folder / "source/disk.img"
        self._contenders: dict[str, Contender] = {}

    def run(self) -> None:
        self._source.parent.mkdir(parents=True)
        self._show(self._workload.base)
        try:
            for kind in CONTENDERS:
                if all(shutil.which(program) for program in getattr(kind, "needs", ())):
                    self._contenders[kind.name] = kind(self._folder / kind.name, self._source)
            self._push("full")
            for mode in READERS:
                command = [sys.executable, str(Path(__file__).with_name("plain.py")), str(self._source), mode]
                done = timed(command)
                self._found.note(mode, "again", Cost(seconds=done.seconds, cpu_seconds=done.cpu_seconds))
            self._push("again")
            self._show(self._workload.day)
            self._push("day")
            self._disk_alone()
            self._pull("pull-empty", None)
            self._pull("pull-yesterday", self._workload.base)
        finally:
            for contender in self._contenders.values():
                contender.close()

    def _disk_alone(self) -> None:
        folder = self._folder / "disk"
        folder.mkdir()
        command: list[str | Path] = [sys.executable, "-m", "bench.disk", self._source, folder]
        done = timed(command, cwd=Path(__file__).parents[1])
        self._note(DISK, "pull-empty", Cost(seconds=float(done.out), cpu_seconds=done.cpu_seconds))
        shutil.rmtree(folder)

    def _show(self, image: Path) -> None:
        """Let the source be this image: a link, so that nothing is copied and the page cache stays warm."""
        self._source.unlink(missing_ok=True)
        os.link(image, self._source)

    def _push(self, step: str) -> None:
        for name, contender in self._contenders.items():
            self._warm()
            self._note(name, step, contender.push())

    def _warm(self) -> None:
        """Read the source once: it is to be in the page cache for everybody, not only for who comes last."""
        subprocess.run(["dd", f"if={self._source}", f"of={os.devnull}", "bs=4M"], check=True, capture_output=True)

    def _pull(self, step: str, onto: Path | None) -> None:
        for name, contender in self._contenders.items():
            folder = self._folder / "pulled"
            target = contender.target(folder)
            target.parent.mkdir(parents=True)
            if onto is not None:
                subprocess.run(["cp", "--sparse=always", onto, target], check=True)
            self._note(name, step, contender.pull(folder))
            if subprocess.run(["cmp", "--silent", target, self._workload.day]).returncode:
                raise BenchError(f"what {name} brought back ({STEPS[step]}) is not what was pushed")
            shutil.rmtree(folder)

    def _note(self, name: str, step: str, cost: Cost) -> None:
        self._found.note(name, step, cost)
        self._report(f"{STEPS[step]}, {name}: {cost.seconds:.2f} s")
