"""SIGKILL of the service in the middle of drills: how long until another process goes on with them.

Counted from the start of the new process until it has stored that it performs the step that was cut off, or another."""

from __future__ import annotations

import random
import sqlite3
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from agent.protocol.messages import Point, PointVolume
from bench.estate import Estate, server
from bench.measure import BenchError, environment
from bench.service import PROGRAMS, Service
from bench.tables import TARGET, Row
from service.receiver.manifest import Manifest, point_root, sealed

LIMIT_SECONDS = 2.0
PATIENCE_SECONDS = 60.0
KILLS = 8
OTHERS, POINTS = 100, 48
"""In the second half the site holds so many points of so many other servers as well."""
MOMENTS_SECONDS = (0.2, 3.0)
"""For so long a service works until it is killed, and its successor goes on: all kinds of steps are met."""
POLL_SECONDS = 0.005
SCRIPT = "#!/bin/sh\nexec sleep 1\n"
PLAN = {
    "plan": "restarted",
    "pre": [{"run": ["pause"], "in_drills": True}],
    "groups": [{"servers": [server("web01")], "wait_seconds": 2, "post": [{"run": ["pause"], "in_drills": True}]}],
}


def measure(estate: Estate, rounds: int, report: Callable[[str], None], seed: int = 1) -> list[Row]:
    """Raises BenchError."""
    service = estate.service
    script = service.data / "scripts/pause"
    script.parent.mkdir(exist_ok=True)
    script.write_text(SCRIPT)
    script.chmod(0o755)
    estate.apply(PLAN)
    rows = []
    rng = random.Random(seed)
    for others in (0, OTHERS):
        fill(service.data, others)
        service.kill()
        service.__enter__()  # it has made rows of the points
        with _Drills(service) as drills:
            took = [_recovery(drills, rng, report) for _ in range(KILLS * rounds)]
        what = f"a run goes on after SIGKILL of the service, {others * POINTS} points of {others} servers beside"
        for words, ours in ((f"median of {len(took)}", statistics.median(took)), ("the longest", max(took))):
            row = Row(what=f"{what}: {words}", measure="s", peer=TARGET, ours=ours, theirs=LIMIT_SECONDS, limit=1.0)
            rows.append(row)
    return rows


def _recovery(drills: _Drills, rng: random.Random, report: Callable[[str], None]) -> float:
    """Seconds, of one kill at some moment."""
    drills.press()
    time.sleep(rng.uniform(*MOMENTS_SECONDS))
    drills.press()  # if it was over meanwhile
    drills.service.kill()
    before = drills.version()
    at_work = drills.at_work()
    began = time.monotonic()
    drills.service.begin()
    while drills.version() == before:
        if time.monotonic() - began > PATIENCE_SECONDS:
            raise BenchError(f"the run does not go on in {PATIENCE_SECONDS:.0f} s")
        time.sleep(POLL_SECONDS)
    seconds = time.monotonic() - began
    drills.service.await_ready()
    report(f"killed at {', '.join(at_work)}: goes on after {seconds:.2f} s")
    return seconds


class _Drills:
    """One drill after the other, seen through the service's database: that is there while no service is."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._run: str | None = None

    def __enter__(self) -> _Drills:
        self._database = sqlite3.connect(self.service.data / "understudy.sqlite", timeout=PATIENCE_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()
        self._end()

    def press(self) -> None:
        """Have a drill that is under way."""
        if self._run is not None and self._asked("SELECT state FROM runs WHERE id = ?") == ["running"]:
            return
        self._end()
        known = self._ids()
        command: list[str | Path] = [
            PROGRAMS / "understudy",
            "panic",
            "restarted",
            "--drill",
            "--yes",
            "--data",
            self.service.data,
        ]
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment({})
        ) as pressed:
            deadline = time.monotonic() + PATIENCE_SECONDS
            while not (new := self._ids() - known) and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
            pressed.kill()  # it would only look on
        if not new:
            raise BenchError("the drill did not begin")
        self._run = new.pop()

    def version(self) -> int:
        (version,) = self._asked("SELECT version FROM runs WHERE id = ?")
        return int(version)

    def at_work(self) -> list[str]:
        """What is being done in it."""
        return self._asked("SELECT action FROM steps WHERE run_id = ? AND state = 'running'")

    def _end(self) -> None:
        if self._run is not None:
            self.service.ask("end", self._run, "--force", "--yes")
            self._run = None

    def _ids(self) -> set[str]:
        return {found for (found,) in self._database.execute("SELECT id FROM runs")}

    def _asked(self, query: str) -> list[str]:
        return [found for (found,) in self._database.execute(query, (self._run,))]


def fill(data: Path, servers: int) -> None:
    """Manifests of so many servers, POINTS each, as pushes leave them at the site; without content: nobody reads it."""
    key = load_pem_private_key((data / "pki/sign.key").read_bytes(), None)
    assert isinstance(key, Ed25519PrivateKey)
    for number in range(servers):
        server_id = f"srv-other-{number:03}"
        documents = data / "site" / server_id / "documents"
        documents.mkdir(parents=True)
        parent = None
        for age in range(POINTS):
            root = f"{number:032x}{age:032x}"
            point = _point(f"pt-other-{number:03}-{age:02}", f"other{number:03}", age, root)
            manifest = Manifest(
                point=point, server_id=server_id, tenant="default", parent=parent, digests=[[f"{point.id}"]]
            )
            (documents / f"{point.id}.json").write_bytes(sealed(manifest, key))
            parent = point.id


def _point(point_id: str, server_name: str, hour: int, root: str) -> Point:
    volume = PointVolume(path="/dev/vda", size_bytes=1 << 34, block_bytes=65536, root=root)
    return Point(
        id=point_id,
        server=server_name,
        taken_at=f"2026-01-{1 + hour // 24:02}T{hour % 24:02}:00:00.000Z",
        consistency="crash",
        completeness="tracked",
        root=point_root([bytes.fromhex(root)]).hex(),
        size_bytes=1 << 34,
        sent_bytes=0,
        epoch=1,
        volumes=[volume],
    )
