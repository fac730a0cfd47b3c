"""A failover with real processes: the source that lives on, the instance that is protected itself, and both ways back.

The instance is a guest that only says that it is up; its agent is a process that takes this for the instance's machine
and sees the instance's disk where the source's disk is.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.harness import BINARIES, Agent, Service, ended, nothing_left_behind, sum_of
from tests.faults.images import BLOCK
from tests.faults.machine import in_private_mounts
from tests.faults.test_boot import boot_sector
from tests.patience import PATIENCE_SECONDS, eventually

SIZE = 16 << 20
CHATTER_BYTES = 96 << 10
"""Handshakes, JSON, headers, digests of the whole disk."""
PLAN = """
plan: web
groups:
- servers:
  - {name: web01, memory_mib: 128, cpus: 1, repair: false, gates: [{console: {text: "login:", timeout_seconds: 60}}]}
"""

pytestmark = [
    pytest.mark.root,
    pytest.mark.qemu,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: agents on other machines have mounts of their own"),
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="needs qemu-system-x86_64"),
]


def as_machine(folder: Path, machine_id: str, disk: Path, at: Path) -> tuple[str, ...]:
    """A prefix for an agent that takes this for the machine `machine_id`, whose disk is found `at` the usual place."""
    identity = folder / f"machine-{machine_id}"
    identity.write_text(machine_id + "\n")
    firmware = "/media/dmi/id"  # firmware that this machine may not have; the rest of the folder stays
    return in_private_mounts(
        f"mount -t tmpfs none /media; cp -a /sys/class/block /sys/class/net /media/; mkdir -p {firmware}; "
        f"cp {identity} {firmware}/product_uuid; mount --bind /media /sys/class; mount --bind {disk} {at}"
    )


class Estate:
    """A server with its source, its instance at the site, and what both hold."""

    def __init__(self, folder: Path, service: Service) -> None:
        self.folder, self.service = folder, service
        self.disk = folder / "disk.raw"
        self.disk.write_bytes(boot_sector("web01 login:") + random.Random(1).randbytes(SIZE - 512))
        self.instance_disk = folder / "instance.raw"
        self.source = Agent(folder / "agent", service)
        self.source.enroll("web01")
        self.source.protect(self.disk)
        self.instance = Agent(folder / "instance", service)
        plan = folder / "plan.yaml"
        plan.write_text(PLAN)
        assert service.ask("plan", "apply", plan).code == 0

    def server(self) -> dict[str, Any]:
        (found,) = self.service.ask("servers", "--json").document
        return dict(found)

    def runs(self) -> list[dict[str, Any]]:
        return list(self.service.ask("runs", "--json").document)

    def fail_over(self) -> dict[str, Any]:
        shutil.copyfile(self.disk, self.instance_disk)
        run = dict(self.service.ask("panic", "web", "--yes", "--json").document)
        assert run["state"] == "succeeded"
        shutil.copytree(self.source.folder, self.instance.folder, dirs_exist_ok=True)  # it is on the disk
        self.instance.prefix = as_machine(self.folder, self.server()["owner"], self.instance_disk, self.disk)
        return run


def overwrite(disk: Path, blocks: range, seed: int) -> int:
    rng = random.Random(seed)
    with open(disk, "r+b") as file:
        for block in blocks:
            file.seek(block * BLOCK)
            file.write(rng.randbytes(BLOCK))
    return len(blocks) * BLOCK


@pytest.fixture
def estate(tmp_path: Path) -> Iterator[Estate]:
    service = Service(tmp_path / "service", env={"UNDERSTUDY_ACCEL": "tcg"})
    service.start()
    made = Estate(tmp_path, service)
    try:
        yield made
        for run in made.runs():
            service.ask("end", run["id"], "--yes")
    finally:
        assert service.stop() == 0, service.log()[-4000:]
    assert "Traceback" not in service.log(), service.log()[-8000:]
    assert nothing_left_behind(tmp_path) == []


@pytest.mark.long
def test_a_source_that_lives_on_is_stopped_and_refused_while_the_instance_is_protected_until_it_is_rolled_back(
    estate: Estate,
) -> None:
    note = estate.folder / "note"
    for name in ("fence", "unfence"):
        allow = estate.source.ask("allow", name, "--", "/bin/sh", "-c", f"echo {name} >> {note}; echo {name} done")
        assert allow.code == 0, allow
    daemon = estate.source.begin("run")
    try:
        eventually(lambda: estate.server()["last_point"])
        run = estate.fail_over()  # declared dead, and it is not
        told = eventually(lambda: estate.server() if (estate.server()["stale"] or {}).get("stopped") else None)
        assert told["stale"]["stopped"] == "fence done"
        assert (told["state"], told["epoch"], told["stale"]["machine"]) == ("failed_over", 2, told["source"])
        for listing in (["servers"], ["runs", run["id"]]):
            assert "was told to stand down" in estate.service.ask(*listing).out

        assert "was failed over" in estate.source.push().complaint
        changed = overwrite(estate.instance_disk, range(10, 30), 2)
        pushed = estate.instance.push()
        assert pushed.document["changed_bytes"] == changed
        assert pushed.document["sent_bytes"] < 1.1 * changed + CHATTER_BYTES
        newest = estate.service.points("web01")[0]
        assert (newest["id"], newest["epoch"]) == (pushed.document["point"], 2)

        assert estate.service.ask("rollback", run["id"], "--yes").code == 0
        eventually(lambda: note.read_text().split() == ["fence", "unfence"])
        eventually(lambda: estate.service.points("web01")[0]["epoch"] == 3)
        assert "retired" in estate.instance.push().complaint
        assert (estate.server()["state"], estate.server()["owner"]) == ("protected", told["source"])
        assert newest["id"] in [point["id"] for point in estate.service.points("web01")]
    finally:
        daemon.send_signal(signal.SIGTERM)
        assert "Traceback" not in ended(daemon).err


@pytest.mark.long
def test_the_way_home_brings_what_differs_and_little_more(estate: Estate) -> None:
    assert estate.source.push().code == 0
    repair = Agent(estate.folder / "repair", estate.service)
    repair.enroll("web01")
    launched = estate.folder / "launched.raw"
    shutil.copyfile(estate.disk, launched)
    run = estate.fail_over()
    overwrite(estate.instance_disk, range(10, 50), 2)
    overwrite(estate.disk, range(100, 140), 3)  # what the old machine wrote before it died, and nobody has
    assert estate.instance.push().code == 0
    stale = estate.folder / "stale.raw"
    shutil.copyfile(estate.disk, stale)

    instance_agent = estate.instance.begin("run")
    line = [str(BINARIES / "understudy"), "failback", run["id"], "--yes", "--json", "--data", str(estate.service.data)]
    going = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
    try:
        wanted = 0
        for _ in range(2):
            point, action = eventually(lambda: pull_wanted(estate))
            before = stale.read_bytes()
            pulled = repair.pull(stale, point)
            assert pulled.code == 0, pulled
            wanted += differing(before, stale.read_bytes())
            if action == "copy web01 home while it runs":
                eventually(lambda: step(estate, "shut down web01")["state"] == "running")
                (pid,) = (estate.service.data / "site" / "instances").glob("*/pid")
                os.kill(int(pid.read_text().split()[0]), signal.SIGKILL)  # this guest knows no power button
                eventually(lambda: step(estate, "copy the last changes of web01 home")["state"] == "running")
    finally:
        instance_agent.send_signal(signal.SIGTERM)
        ended(instance_agent)
    assert sum_of(stale) == sum_of(launched), "the instance's own disk is what went home"
    eventually(lambda: step(estate, "boot web01 at home")["state"] == "running")
    shutil.copyfile(stale, estate.disk)
    assert estate.source.push().code == 0
    out, _ = going.communicate(timeout=PATIENCE_SECONDS)
    done = json.loads(out)
    assert done["state"] == "succeeded"
    assert wanted <= done["received_bytes"] <= 1.1 * wanted + CHATTER_BYTES
    assert done["rto_seconds"] > 0
    assert estate.server()["state"] == "protected"


def pull_wanted(estate: Estate) -> tuple[str, str] | None:
    """The point that the failback waits for somebody to pull, and in which step."""
    for each in estate.runs()[0]["steps"]:
        if each["state"] == "running" and "understudy-agent pull" in (each["waits_for"] or ""):
            return each["waits_for"].split("pull ")[1].split()[0], each["name"]
    return None


def step(estate: Estate, name: str) -> dict[str, Any]:
    return next(dict(each) for each in estate.runs()[0]["steps"] if each["name"] == name)


def differing(before: bytes, after: bytes) -> int:
    return sum(
        len(after[at : at + BLOCK])
        for at in range(0, len(after), BLOCK)
        if before[at : at + BLOCK] != after[at : at + BLOCK]
    )


@pytest.mark.long
def test_a_database_from_before_the_failover_lets_no_source_in_again(estate: Estate) -> None:
    """Yesterday's database beside today's site: who owns the identity is proven by the site's own documents."""
    assert estate.source.push().code == 0
    estate.service.stop()
    kept = estate.service.data / "understudy.sqlite"
    backup = shutil.copyfile(kept, estate.folder / "yesterday.sqlite")
    estate.service.start()
    estate.fail_over()
    owner = estate.server()["owner"]
    overwrite(estate.instance_disk, range(10, 30), 2)
    assert estate.instance.push().code == 0
    estate.service.kill()
    for path in estate.service.data.glob("understudy.sqlite*"):
        path.unlink()
    shutil.copyfile(backup, kept)
    estate.service.start()
    try:
        refused = estate.source.push().complaint
        assert "belongs to machine" in refused
        assert "enrol it anew" in refused
        pushed = estate.instance.push().document["point"]
        assert (estate.service.points("web01")[0]["id"], estate.service.points("web01")[0]["epoch"]) == (pushed, 2)
        server = estate.server()
        assert (server["state"], server["epoch"], server["owner"]) == ("protected", 2, owner)
        assert "the site proves epoch 2" in estate.service.ask("audit").out
    finally:  # its run went with the database, so it is ended by hand, as the runbook says
        (pid,) = (estate.service.data / "site" / "instances").glob("*/pid")
        os.kill(int(pid.read_text().split()[0]), signal.SIGKILL)
