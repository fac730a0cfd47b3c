"""Gates that ask the guest's own agent, with real processes: its heartbeat, and a command that it allows."""

# ruff: noqa: F811  # arguments are fixtures

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.faults.harness import BINARIES, ended
from tests.faults.test_owners import PLAN, Estate, as_machine, estate  # noqa: F401  # a fixture
from tests.patience import PATIENCE_SECONDS, eventually

GATES = PLAN.replace(
    'gates: [{console: {text: "login:", timeout_seconds: 60}}]',
    "gates: [{heartbeat: {timeout_seconds: 60}}, {command: {name: ready, timeout_seconds: LIMIT}}]",
)

pytestmark = [
    pytest.mark.root,
    pytest.mark.qemu,
    pytest.mark.long,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: agents on other machines have mounts of their own"),
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="needs qemu-system-x86_64"),
]


@contextmanager
def panic(estate: Estate, limit_seconds: int) -> Iterator[subprocess.Popen[str]]:
    """A failover under way, with the instance's agent started as soon as it is known which machine that is."""
    plan = estate.folder / "gates.yaml"
    plan.write_text(GATES.replace("LIMIT", str(limit_seconds)))
    assert estate.service.ask("plan", "apply", plan).code == 0
    before = estate.server()["owner"]
    shutil.copyfile(estate.disk, estate.instance_disk)
    line = [str(BINARIES / "understudy"), "panic", "web", "--yes", "--json", "--data", str(estate.service.data)]
    going = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    owner = eventually(lambda: found if (found := estate.server()["owner"]) != before else None)
    shutil.copytree(estate.source.folder, estate.instance.folder, dirs_exist_ok=True)  # it is on the disk
    estate.instance.prefix = as_machine(estate.folder, owner, estate.instance_disk, estate.disk)
    agent = estate.instance.begin("run")
    try:
        yield going
    finally:
        agent.send_signal(signal.SIGTERM)
        assert "Traceback" not in ended(agent).err


def test_a_heartbeat_and_a_command_in_the_guest_hold_once_the_guest_is_ready(estate: Estate) -> None:
    flag = estate.folder / "ready"
    assert estate.source.ask("allow", "ready", "--", "/bin/sh", "-c", f"cat {flag}").code == 0
    assert estate.source.push().code == 0
    with panic(estate, 60) as going:
        gate = eventually(lambda: _running(estate, "gate web01: success of the command ready in the guest"))
        assert gate["result"] == {}
        flag.write_text("all tables are there\n")
        out, err = going.communicate(timeout=PATIENCE_SECONDS)
    run = json.loads(out)
    assert (run["state"], going.returncode) == ("succeeded", 0), err
    seen = {step["name"]: step["result"].get("seen") for step in run["steps"] if step["action"] == "gate"}
    assert "made contact" in seen["gate web01: its agent's heartbeat"]
    assert seen["gate web01: success of the command ready in the guest"] == "ready succeeded: all tables are there"


def test_a_command_that_never_succeeds_says_what_it_said_last(estate: Estate) -> None:
    command = "echo table users is missing >&2; exit 3"
    assert estate.source.ask("allow", "ready", "--", "/bin/sh", "-c", command).code == 0
    assert estate.source.push().code == 0
    with panic(estate, 8) as going:
        out, err = going.communicate(timeout=PATIENCE_SECONDS)
    assert (json.loads(out)["state"], going.returncode) == ("failed", 1)
    assert "did not come within 8 s" in err
    assert "table users is missing" in err


def _running(estate: Estate, name: str) -> dict[str, object] | None:
    return next(
        (step for step in estate.runs()[0]["steps"] if (step["name"], step["state"]) == (name, "running")), None
    )
