"""Drills as operators and auditors meet them: a real service, real guests, real filesystems, and proof that holds."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.harness import Agent, Ledger, Service, ended, nothing_left_behind, run
from tests.faults.test_boot import boot_sector
from tests.patience import PATIENCE_SECONDS, eventually
from tests.recovery.repair.conftest import worker_parts

__all__ = ["worker_parts"]

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="needs qemu-system-x86_64"),
]

PLAN = """
plan: shop
groups:
  - servers:
      - name: web01
        memory_mib: 128
        cpus: 1
        repair: false
        gates:
          - console: {{text: "{awaited}", timeout_seconds: 120}}
"""


def newest_run(service: Service) -> dict[str, Any]:
    found: dict[str, Any] = service.ask("runs", "--json").document[0]
    return found


def apply(service: Service, folder: Path, awaited: str) -> None:
    plan = folder / "plan.yaml"
    plan.write_text(PLAN.format(awaited=awaited))
    assert service.ask("plan", "apply", plan).code == 0


def changed(service: Service, statement: str, *values: str) -> None:
    """Something in the service's database, behind its back."""
    with sqlite3.connect(service.data / "understudy.sqlite", timeout=PATIENCE_SECONDS) as database:
        database.execute(statement, values)
    database.close()


def instances(service: Service) -> list[Path]:
    return list((service.data / "site" / "instances").glob("[!.]*"))


@pytest.fixture
def guest(protected: Agent, image: Path, ledger: Ledger) -> Agent:
    """An agent whose disk boots as far as a login."""
    with open(image, "r+b") as disk:
        disk.write(boot_sector("web01 login:"))
    ledger.reported(protected.push(), image)
    return protected


@pytest.fixture
def checking_service(worker_parts: None, tmp_path: Path) -> Iterator[Service]:
    """A service that can check filesystems."""
    made = Service(tmp_path / "service")
    made.start()
    yield made
    code = made.stop()
    assert "Traceback" not in made.log(), made.log()[-8000:]
    assert code == 0
    assert nothing_left_behind(tmp_path) == []


@pytest.mark.skipif(shutil.which("mke2fs") is None, reason="needs mke2fs")
def test_a_drill_leaves_a_picture_checked_filesystems_and_evidence_that_needs_no_service(
    checking_service: Service, image: Path, tmp_path: Path
) -> None:
    service = checking_service
    agent = Agent(tmp_path / "agent", service)
    agent.enroll("web01")
    data = tmp_path / "data.raw"
    subprocess.run(["mke2fs", "-q", "-t", "ext4", data, "16M"], check=True)
    with open(image, "r+b") as disk:
        disk.write(boot_sector("web01 login:"))
    agent.protect(image, data)
    point = agent.push().document["point"]
    apply(service, tmp_path, "login:")
    drilled = service.ask("panic", "shop", "--drill", "--ttl", "1h")
    assert drilled.code == 0, drilled
    assert "understudy evidence" in drilled.out
    found = newest_run(service)
    assert [step["name"] for step in found["steps"]] == [
        "launch web01",
        "gate web01: 'login:' on the console",
        "picture of web01",
        "filesystems of web01",
        "evidence",
    ]
    assert found["expires_at"] == found["created_at"] + 3600
    assert found["steps"][3]["result"]["note"] == "1 sound"
    (server,) = service.ask("servers", "--json").document
    (listed,) = service.points("web01")
    assert server["bootable"] is listed["bootable"] is True
    assert server["proven_at"] == listed["proven_at"] is not None
    assert "never" not in service.ask("drills").out

    out = tmp_path / "proof"
    assert service.ask("evidence", found["id"], "--out", out).code == 0
    assert service.ask("end", found["id"]).code == 0
    service.stop()
    key = service.data / "pki" / "sign.pub"
    verified = run("understudy", "evidence", "verify", out / f"{found['id']}.json", "--key", key, "--json").document
    assert (verified["verdict"], verified["servers"][0]["point"]) == ("held", point)
    assert verified["files_verified"] == [f"{found['id']}.html", f"{agent.server_id}.png"]
    picture = (out / f"{agent.server_id}.png").read_bytes()
    width, height = struct.unpack(">II", picture[16:24])
    assert width >= 320, "a screen was seen"
    assert height >= 200
    (out / f"{agent.server_id}.png").write_bytes(picture + b"x")
    refused = run("understudy", "evidence", "verify", out / f"{found['id']}.json", "--key", key)
    assert "is not what was signed" in refused.complaint
    assert not list((service.data / "drills" / ".scratch").glob("*"))


@pytest.mark.skipif(shutil.which("mke2fs") is None, reason="needs mke2fs")
@pytest.mark.long
def test_a_drill_finds_a_damaged_filesystem_on_a_data_volume(
    checking_service: Service, image: Path, tmp_path: Path
) -> None:
    service = checking_service
    agent = Agent(tmp_path / "agent", service)
    agent.enroll("web01")
    data = tmp_path / "data.raw"
    subprocess.run(["mke2fs", "-q", "-t", "ext4", data, "16M"], check=True)
    subprocess.run(["debugfs", "-w", "-R", "clri <2>", data], check=True, capture_output=True)
    with open(image, "r+b") as disk:
        disk.write(boot_sector("web01 login:"))
    agent.protect(image, data)
    agent.push().document  # noqa: B018  # asserts
    apply(service, tmp_path, "login:")
    assert "the ext4 on volume 1 is damaged" in service.ask("panic", "shop", "--drill").complaint
    found = newest_run(service)
    facts = evidence_of(service, found["id"], tmp_path / "proof")
    assert facts["verdict"] == "failed"
    assert facts["servers"][0]["gates"][0]["state"] == "done", "it boots all the same, and both is said"
    assert facts["servers"][0]["filesystems"]["found"][0]["soundness"] == "damaged"
    assert service.ask("end", found["id"]).code == 0


def evidence_of(service: Service, run_id: str, out: Path) -> dict[str, Any]:
    assert service.ask("evidence", run_id, "--out", out).code == 0
    facts: dict[str, Any] = json.loads(json.loads((out / f"{run_id}.json").read_bytes())["evidence"])
    return facts


def test_replication_goes_on_while_a_drill_runs_and_the_drill_ends_by_itself(
    guest: Agent, image: Path, ledger: Ledger, service: Service, tmp_path: Path
) -> None:
    apply(service, tmp_path, "what never comes")
    panic = subprocess.Popen(
        [*service.command()[:1], "panic", "shop", "--drill", "--ttl", "1h", "--data", str(service.data)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        eventually(lambda: [one for one in instances(service) if (one / "console.log").exists()])
        for _ in range(2):
            with open(image, "r+b") as disk:
                disk.seek(1 << 20)
                disk.write(os.urandom(70_000))
            ledger.reported(guest.push(), image)
        drilled = newest_run(service)
        assert drilled["state"] == "running", "the pushes committed while the drill was at work"
        changed(service, "UPDATE runs SET expires_at = 1.0 WHERE id = ?", drilled["id"])  # the hour is over
        eventually(lambda: newest_run(service)["state"] == "ended")
    except BaseException:
        panic.kill()
        raise
    finally:
        watched = ended(panic)
    assert watched.code == 1
    assert instances(service) == []
    ledger.check(service)


@pytest.mark.long
def test_a_drill_that_a_killed_service_left_behind_is_removed_by_the_next_one(
    guest: Agent, service: Service, tmp_path: Path
) -> None:
    apply(service, tmp_path, "login:")
    for _ in range(2):
        assert service.ask("panic", "shop", "--drill").code == 0
    kept, lost = [entry["id"] for entry in service.ask("runs", "--json").document]
    assert len(instances(service)) == 2
    service.kill()
    # As if its end had been cut off between what was stored and what was removed.
    changed(service, "UPDATE runs SET state = 'ended' WHERE id = ?", lost)
    service.start()
    eventually(lambda: len(instances(service)) == 1)
    (left,) = instances(service)
    assert json.loads((left / "spec.json").read_bytes())["spec"]["run_id"] == kept
    assert service.ask("end", kept).code == 0
    assert instances(service) == []


@pytest.mark.long
def test_scheduled_drills_take_everybody_in_turn_and_clean_up_after_themselves(
    guest: Agent, service: Service, tmp_path: Path
) -> None:
    apply(service, tmp_path, "login:")
    standing = service.ask("drills", "schedule", "--every", "24h", "--json").document
    assert standing["schedule"] == {"every_seconds": 86400.0, "window": None, "at_once": 1}
    assert standing["targets"][0]["servers"] == [{"server": "web01", "proven_at": None, "last": None}]
    drilled = eventually(lambda: [entry for entry in service.ask("runs", "--json").document if entry["scheduled"]])
    eventually(lambda: newest_run(service)["state"] == "ended")
    assert instances(service) == []
    (target,) = service.ask("drills", "--json").document["targets"]
    assert target["servers"][0]["last"]["held"] is True
    assert target["servers"][0]["last"]["run"] == drilled[0]["id"]
    assert evidence_of(service, drilled[0]["id"], tmp_path / "proof")["verdict"] == "held"
    assert "no drills are scheduled" in service.ask("drills", "schedule", "off").out
    assert "is no window" in service.ask("drills", "schedule", "--every", "24h", "--window", "25:00-01:00").complaint
    assert len(service.ask("runs", "--json").document) == 1, "nobody is drilled twice a day"
