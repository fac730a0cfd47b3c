"""A plan as an operator uses it: put in place, checked, capped, drilled with a real guest, ended."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.faults.harness import BINARIES, Agent, Ledger, Ran, Service
from tests.faults.test_boot import boot_sector
from tests.patience import PATIENCE_SECONDS, eventually

PLAN = """
plan: shop
rpo_seconds: 3600
point: latest
groups:
  - name: all
    wait_seconds: 0.1
    pre:
      - run: [announce, drill]
        in_drills: true
    servers:
      - name: web01
        memory_mib: 128
        cpus: 1
        address: 10.20.30.40/24
        gates:
          - console: {text: "login:", timeout_seconds: 60}
post:
  - run: [switch-dns]
"""


WAITING = """
plan: waits
groups:
  - servers: [{name: web01, memory_mib: 128, cpus: 1, gates: [{console: {text: "login:", timeout_seconds: 60}}]}]
    wait_seconds: 8
"""


def push_bootable(agent: Agent, image: Path) -> Ran:
    with open(image, "r+b") as disk:
        disk.write(boot_sector("web01 login:"))
    return agent.push()


def apply_plan(service: Service, text: str, folder: Path) -> None:
    plan = folder / "plan.yaml"
    plan.write_text(text)
    assert service.ask("plan", "apply", plan).code == 0


@pytest.mark.qemu
@pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="needs qemu-system-x86_64")
def test_a_plan_is_checked_capped_drilled_and_shown_to_have_worked(
    protected: Agent, image: Path, ledger: Ledger, service: Service, tmp_path: Path
) -> None:
    ledger.reported(push_bootable(protected, image), image)
    apply_plan(service, PLAN, tmp_path)

    assert "there is no script 'announce'" in service.ask("plan", "check", "shop").complaint
    scripts = service.data / "scripts"
    scripts.mkdir()
    for name in ("announce", "switch-dns"):
        (scripts / name).write_text(f"#!/bin/sh\necho {name} $1 $UNDERSTUDY_KIND\n")
        (scripts / name).chmod(0o755)
    checked = service.ask("plan", "check", "shop")
    assert "plan shop: AMBER" in checked.out, checked
    assert "web01 was never booted here" in checked.out

    assert service.ask("caps", "--instances", "0").code == 0
    assert "1 instance is more than tenant default allows (0)" in service.ask("panic", "shop", "--drill").complaint
    drilled = service.ask("panic", "shop", "--drill", "--over-cap", "a test")
    assert drilled.code == 0, drilled
    (run,) = service.ask("runs", "--json").document
    assert (run["state"], run["over_cap"], run["price"]["instances"]) == ("succeeded", "a test", 1)
    assert [step["name"] for step in run["steps"]] == [
        "script announce before all",
        "launch web01",
        "gate web01: 'login:' on the console",
        "wait after all",
        "picture of web01",
        "filesystems of web01",
        "evidence",
    ]
    assert run["steps"][0]["result"]["output"] == "announce drill drill"
    assert "never booted" not in service.ask("plan", "check", "shop").out
    assert service.ask("panic", "shop", "--drill", "--dry-run", "--point", "latest-bootable").code == 0

    assert service.ask("end", run["id"]).code == 0
    assert not list((service.data / "site" / "instances").glob("*/pid"))
    ledger.reported(protected.push(), image)
    ledger.check(service)


@pytest.mark.qemu
@pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="needs qemu-system-x86_64")
def test_the_command_that_began_a_run_stays_with_it_over_a_restart_of_the_service(
    protected: Agent, image: Path, ledger: Ledger, service: Service, tmp_path: Path
) -> None:
    ledger.reported(push_bootable(protected, image), image)
    apply_plan(service, WAITING, tmp_path)
    line = [BINARIES / "understudy", "panic", "waits", "--drill", "--data", service.data]
    panic = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    eventually(lambda: [step for step in steps_of(service) if (step["action"], step["state"]) == ("wait", "running")])
    service.kill()
    service.start()
    out, err = panic.communicate(timeout=PATIENCE_SECONDS)
    assert panic.returncode == 0, err
    (run,) = service.ask("runs", "--json").document
    assert f"{run['id']} succeeded" in out
    shown = service.ask("runs", run["id"])
    assert "web01: works" in shown.out
    assert f"understudy end {run['id']}" in shown.out
    assert service.ask("end", run["id"]).code == 0
    ledger.check(service)


def steps_of(service: Service) -> list[dict[str, Any]]:
    return [step for run in service.ask("runs", "--json").document for step in run["steps"]]
