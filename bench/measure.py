"""What a command costs: wall time, processor time of it and of the server it talks to, bytes over the wire."""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


class BenchError(Exception):
    """Something could not be measured; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """`wire_bytes` is None where it is not known. `cpu_seconds` is of both ends."""

    seconds: float
    cpu_seconds: float
    wire_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Ran:
    seconds: float
    cpu_seconds: float
    out: str


def undo_when_told_to_end() -> None:
    """SIGTERM ends a bench as Ctrl-C does: what it has made (folders, services, network namespaces) is removed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def timed(
    command: Sequence[str | Path],
    *,
    servers: Sequence[int] = (),
    env: Mapping[str, str] | None = None,
    cwd: Path = Path("/"),
) -> Ran:
    """Run a command to its end, as a user would wait for it. `servers`: processes whose time is counted with it.

    What was written before goes to the disk first, so that nobody pays for what ran earlier. Raises BenchError."""
    os.sync()
    before = sum(map(processor_seconds, servers))
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        began = time.monotonic()
        with subprocess.Popen(
            list(map(str, command)),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env=environment(env or {}),
            cwd=cwd,
        ) as process:
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.monotonic() - began
            process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        if process.returncode:
            words = (err.read() + out.read()).decode(errors="replace").strip()[-2000:]
            raise BenchError(f"{' '.join(map(str, command))} failed (exit {process.returncode}): {words}")
        served = sum(map(processor_seconds, servers)) - before
        return Ran(seconds, usage.ru_utime + usage.ru_stime + served, out.read().decode(errors="replace"))


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Ours, but for settings that would lead the command lines to somebody's real service or repository."""
    ours = {
        name: value for name, value in os.environ.items() if not name.startswith(("UNDERSTUDY_", "RESTIC_", "RCLONE_"))
    }
    return {**ours, "PATH": f"{ours.get('PATH', '')}:/usr/sbin:/sbin", **settings}


def processor_seconds(pid: int) -> float:
    """Of a process and all its descendants, ended ones included."""
    total = 0.0
    with contextlib.suppress(OSError):  # it ended meanwhile: its parent's figure holds it
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total = sum(map(int, fields[11:15])) / _TICKS_A_SECOND
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += sum(processor_seconds(int(child)) for child in (task / "children").read_text().split())
    return total


def descendants(pid: int) -> set[int]:
    """A process's children and theirs, as far as they still run."""
    found: set[int] = set()
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                found |= {child} | descendants(child)
    return found


def anonymous_mib(pid: int) -> float:
    """A process's own memory in MiB; 0 once it has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) / 1024
    return 0.0


def median(costs: Sequence[Cost]) -> Cost:
    """The median of each figure for itself."""
    wire = [cost.wire_bytes for cost in costs if cost.wire_bytes is not None]
    return Cost(
        seconds=statistics.median(cost.seconds for cost in costs),
        cpu_seconds=statistics.median(cost.cpu_seconds for cost in costs),
        wire_bytes=int(statistics.median(wire)) if wire else None,
    )
