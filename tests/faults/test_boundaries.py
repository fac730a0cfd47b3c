"""The service is killed at every boundary of every step of real runs, and the next process goes on: real processes,
real guests, boot repair, scripts, gates, the proof of a drill, and the way home."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.harness import BINARIES, Agent, Service, ended, nothing_left_behind, run, sum_of
from tests.faults.test_owners import as_machine
from tests.patience import PATIENCE_SECONDS
from tests.recovery.repair.conftest import worker_parts
from tests.recovery.repair.test_repair import make_disk, make_tree, needs_tools
from tests.recovery.sites.guest import BOOT_SECTOR

__all__ = ["worker_parts"]

REPOSITORY = Path(__file__).resolve().parents[2]
PLAN = """
plan: shop
pre: [{run: [note, pre], in_drills: true}]
groups:
- wait_seconds: 1
  servers:
  - {name: web01, memory_mib: 64, cpus: 1, gates: [{console: {text: "login:", timeout_seconds: 120}}]}
  post: [{run: [note, post], in_drills: true}]
"""
BOUNDARIES = ("begun", "performed", "ended")

pytestmark = [
    pytest.mark.root,
    pytest.mark.qemu,
    pytest.mark.long,
    pytest.mark.timeout(3600),
    needs_tools,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: agents on other machines have mounts of their own"),
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="needs qemu-system-x86_64"),
]


class DyingService(Service):
    """Kills itself (tests/faults/killing.py), and is started again by whoever finds it dead."""

    @property
    def marks(self) -> Path:
        return self.folder / "marks"

    def command(self) -> list[str]:
        return [sys.executable, "-m", "tests.faults.killing", str(self.marks), *super().command()[1:]]

    def start(self) -> None:
        """It may die, at another place, before it is ready."""
        self.marks.mkdir(parents=True, exist_ok=True)
        while True:
            died = len(self.died())
            try:
                super().start()
            except AssertionError:
                if len(self.died()) == died:
                    raise
            else:
                return

    def revive(self) -> None:
        if not self.running:
            self.kill()
            self.start()

    def ask_until(
        self,
        there: Callable[[], bool],
        heard: Callable[[], bool],
        command: tuple[str, ...],
        people: Callable[[], None] = lambda: None,
    ) -> None:
        """An operator's command, said again whenever it has ended and was not heard; the service is started again
        whenever it has died; `people` do what they do meanwhile."""
        line = [str(BINARIES / "understudy"), *command, "--data", str(self.data)]
        asking: subprocess.Popen[bytes] | None = None
        limit = time.monotonic() + 6 * PATIENCE_SECONDS
        try:
            while not there():
                assert time.monotonic() < limit, self.log()[-4000:]
                self.revive()
                if (asking is None or asking.poll() is not None) and not heard():
                    asking = subprocess.Popen(
                        line, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
                    )
                people()
                time.sleep(0.05)
        finally:
            if asking is not None:
                asking.kill()
                asking.wait()
        self.revive()

    def died(self) -> set[str]:
        return {path.name for path in self.marks.iterdir()}

    def rows(self, query: str, *values: str) -> list[dict[str, Any]]:
        """From its database, which is there while no service is."""
        with contextlib.closing(sqlite3.connect(self.data / "understudy.sqlite", timeout=PATIENCE_SECONDS)) as database:
            database.row_factory = sqlite3.Row
            return [dict(row) for row in database.execute(query, values)]

    def states(self, kind: str) -> list[str]:
        return [str(row["state"]) for row in self.rows("SELECT state FROM runs WHERE kind = ?", kind)]

    def steps(self, kind: str) -> list[dict[str, Any]]:
        query = "SELECT steps.* FROM steps JOIN runs ON runs.id = run_id WHERE kind = ? ORDER BY position"
        return self.rows(query, kind)


class Estate:
    """One server with its disk, and whatever people do at home."""

    def __init__(self, folder: Path, service: DyingService) -> None:
        self.folder, self.service = folder, service
        self.disk, self.away, self.home = (folder / f"{name}.raw" for name in ("disk", "away", "home"))
        make_disk(make_tree(folder / "tree"), self.disk)
        with open(self.disk, "r+b") as disk:
            disk.write(BOOT_SECTOR[:440])  # the partition table follows
        self.source = Agent(folder / "agent", service)
        self.source.enroll("web01")
        self.source.protect(self.disk)
        assert self.source.push().code == 0
        script = service.data / "scripts/note"
        script.parent.mkdir()
        script.write_text(f"#!/bin/sh\necho $UNDERSTUDY_KIND $1 >> {folder}/noted\n")
        script.chmod(0o755)
        plan = folder / "plan.yaml"
        plan.write_text(PLAN)
        assert service.ask("plan", "apply", plan).code == 0

    def until(self, kind: str, state: str, ask: tuple[str, ...], people: Callable[[], None] = lambda: None) -> None:
        """Have the run of this kind come to `state`, asking for that as an operator would: again after a crash, where
        nobody has heard."""
        on_its_way = {"running"} if state == "succeeded" else {"ending"}

        def heard() -> bool:
            states = self.service.states(kind)
            assert "failed" not in states, self.service.steps(kind)
            return bool(on_its_way & set(states))

        self.service.ask_until(lambda: self.service.states(kind) == [state], heard, ask, people)

    def id_of(self, kind: str) -> str:
        (found,) = self.service.rows("SELECT id FROM runs WHERE kind = ?", kind)
        return str(found["id"])

    def check(self, kind: str) -> list[str]:
        """It was killed at every boundary of each step. Returns the steps' actions."""
        steps = self.service.steps(kind)
        assert {step["state"] for step in steps} == {"done"}, steps
        died = self.service.died()
        names = [f"{kind}.{step['position']}.{step['action']}" for step in steps]
        assert [f"{name}.{at}" for name in names for at in BOUNDARIES if f"{name}.{at}" not in died] == []
        assert f"{kind}.stored" in died
        assert {f"{kind}.before-succeeded", f"{kind}.succeeded"} <= died
        return [step["action"] for step in steps]

    def instances(self) -> list[Path]:
        return list((self.service.data / "site/instances").glob("[!.]*"))


@pytest.fixture
def estate(worker_parts: None, tmp_path: Path) -> Iterator[Estate]:
    service = DyingService(tmp_path / "service", env={"PYTHONPATH": str(REPOSITORY)})
    service.start()
    try:
        yield Estate(tmp_path, service)
        assert service.ask("verify", "--all").code == 0
    finally:
        for kind in ("failback", "drill", "failover"):  # what is brought home is ended last
            for found in service.rows("SELECT id FROM runs WHERE kind = ? AND state != 'ended'", kind):
                over = functools.partial(
                    service.rows, "SELECT 1 FROM runs WHERE id = ? AND state = 'ended'", found["id"]
                )
                service.ask_until(
                    lambda over=over: bool(over()), lambda: False, ("end", found["id"], "--force", "--yes")
                )
        service.revive()
        assert service.stop() == 0, service.log()[-4000:]
    assert "Traceback" not in service.log(), service.log()[-8000:]
    assert nothing_left_behind(tmp_path) == []


def test_a_drill_that_is_killed_at_every_boundary_proves_the_same_and_leaves_nothing(estate: Estate) -> None:
    service = estate.service
    estate.until("drill", "succeeded", ("panic", "shop", "--drill", "--yes"))
    actions = ["script", "repair", "launch", "gate", "wait", "script", "picture", "filesystems", "evidence"]
    assert estate.check("drill") == actions
    repaired = next(step for step in service.steps("drill") if step["action"] == "repair")
    assert json.loads(repaired["result"])["changes"] > 0
    assert len(estate.instances()) == 1
    drill = estate.id_of("drill")
    proof = estate.folder / "proof"
    assert service.ask("evidence", drill, "--out", proof).code == 0
    checked = run("understudy", "evidence", "verify", proof / f"{drill}.json", "--key", service.data / "pki/sign.pub")
    assert checked.code == 0, checked
    assert "every gate held" in checked.out
    estate.until("drill", "ended", ("end", drill))
    assert {"drill.before-ending", "drill.ending", "drill.before-ended", "drill.ended"} <= service.died()
    assert estate.instances() == []
    noted = (estate.folder / "noted").read_text().splitlines()
    assert (noted[0], noted[-1], set(noted)) == ("drill pre", "drill post", {"drill pre", "drill post"})


def test_a_failover_and_the_way_home_that_are_killed_at_every_boundary_end_as_if_nothing_had_happened(
    estate: Estate,
) -> None:
    service, source = estate.service, estate.source
    estate.until("failover", "succeeded", ("panic", "shop", "--yes"))
    assert estate.check("failover") == ["script", "hand_to_instance", "repair", "launch", "gate", "wait", "script"]
    (server,) = service.ask("servers", "--json").document
    assert (server["state"], server["epoch"]) == ("failed_over", 2)

    shutil.copyfile(estate.disk, estate.away)
    shutil.copyfile(estate.disk, estate.home)
    with open(estate.away, "r+b") as disk:  # what the instance did since
        disk.seek(512 << 10)
        disk.write(random.Random(2).randbytes(256 << 10))
    shutil.copytree(source.folder, estate.folder / "away")  # it is on the disk
    away = Agent(estate.folder / "away", service)
    away.prefix = as_machine(estate.folder, server["owner"], estate.away, estate.disk)
    repair = Agent(estate.folder / "repair", service)
    repair.enroll("web01")
    pulled: set[str] = set()
    started = False

    def people() -> None:
        nonlocal started
        for step in service.steps("failback"):
            if step["state"] != "running":
                continue
            words = step["waits_for"] or ""
            if step["action"] == "await_pull" and "understudy-agent pull" in words:
                point = words.split("pull ")[1].split()[0]
                pulled.update([point] if repair.pull(estate.home, point).code == 0 else [])
            if step["action"] in ("await_home", "await_forward") and not started:
                shutil.copyfile(estate.home, estate.disk)
                started = source.push().code == 0

    daemon = away.begin("run")
    try:
        estate.until("failback", "succeeded", ("failback", estate.id_of("failover"), "--yes"), people)
    finally:
        daemon.send_signal(signal.SIGTERM)
        ended(daemon)
    actions = ["take_point", "await_pull", "shut_down", "undo_repair", "capture", "await_pull", "hand_home"]
    assert estate.check("failback") == [*actions, "await_home", "await_forward", "settle", "retire"]
    assert len(pulled) == 2
    (server,) = service.ask("servers", "--json").document
    assert (server["state"], server["epoch"]) == ("protected", 3)
    assert service.states("failover") == ["ended"]
    assert estate.instances() == []
    newest = service.points("web01")[0]
    assert newest["epoch"] == 3
    exported = estate.folder / "export.raw"
    assert service.ask("export", newest["id"], "--volume", "0", "--format", "raw", exported).code == 0
    assert sum_of(exported) == sum_of(estate.disk) == sum_of(estate.home)
