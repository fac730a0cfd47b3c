"""A server whose disk has another name than it was protected by: in QEMU there and back, and what everybody is told."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demo import image as demo_image
from demo.inject import inject
from demo.lab import HOST_AS_SEEN_BY_GUESTS, REPOSITORY, CommandLine, OnPremServer, Program, wait_for
from demo.shop import fetch
from tests.faults.harness import Agent, Ledger, Service, enrolled, served
from tests.faults.images import make_image
from tests.faults.machine import loop_device, on_another_machine

TOOLS = ("mmdebstrap", "mke2fs", "sfdisk", "debugfs", "qemu-system-x86_64")
BOOT_SECONDS = 400
POINT_SECONDS = 900
FAILBACK_SECONDS = 1800
MISSING = [tool for tool in TOOLS if shutil.which(tool, path="/usr/sbin:/usr/bin:/sbin:/bin") is None]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with served(tmp_path / "service") as made:
        yield made
        for run in made.ask("runs", "--json").document:
            made.ask("end", run["id"], "--force", "--json").document  # noqa: B018  # asserts


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="loop devices need root")
def test_a_volume_under_another_name_is_pushed_as_a_delta_and_with_doubt_not_at_all(
    service: Service, tmp_path: Path
) -> None:
    image, moved = make_image(tmp_path / "disk.raw", random.Random(1)), tmp_path / "moved.raw"
    agent, name = enrolled(tmp_path / "agent", service, "web01"), tmp_path / "sda"
    ledger = Ledger(agent, tmp_path)
    with loop_device(image) as device:
        os.mknod(name, 0o60600, os.stat(device).st_rdev)
        agent.protect(name)
        ledger.reported(agent.push(), image)
        name.unlink()
        pushed = agent.push()
        ledger.reported(pushed, image)
        assert pushed.document["found_at"] == {str(name): device}
        assert pushed.document["sent_bytes"] < 64 << 10
        (server,) = service.ask("servers", "--json").document
        assert [(one["path"], one["found_at"]) for one in server["volumes"]] == [(str(name), device)]
        assert f"{name} is {device}" in service.ask("servers").out
        assert f"{name}, here {device}" in agent.ask("inventory").out
        assert f"{name} is {device} here" in agent.ask("push").out

        agent.prefix = on_another_machine(tmp_path, 1)  # where the kernel's name for it means nothing
        assert f"understudy-agent relocate {name} DISK" in agent.push().complaint
        assert f"{name}, here in doubt" in agent.ask("inventory").out
        agent.prefix = ()
        shutil.copyfile(image, moved)
        with loop_device(moved) as another:
            assert f"is {another} from now on" in agent.ask("relocate", name, another).out
            pushed = agent.push()
            assert pushed.document["found_at"] == {str(name): another}
            assert pushed.document["sent_bytes"] < 64 << 10, "the volume is the same, and so is what is known of it"


@pytest.mark.qemu
@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)} (make setup)")
def test_a_server_protected_as_sda_goes_on_pushing_as_vda_and_comes_home_to_sda(
    service: Service, tmp_path: Path
) -> None:
    understudy = CommandLine("understudy", ["--data", service.data], tmp_path / "commands.log")
    disk = tmp_path / "home.raw"
    subprocess.run(["cp", "--sparse=always", demo_image.build(REPOSITORY / ".cache"), disk], check=True)
    order = {
        "url": f"https://{HOST_AS_SEEN_BY_GUESTS}:{service.port}",
        "token": service.token("--name", "web01"),
        "protect": ["/dev/sda"],
    }
    inject(disk, "/etc/understudy/enroll.json", json.dumps(order).encode())
    machine_id = str(uuid.uuid4())
    home = OnPremServer(tmp_path, disk, machine_id, ide=True)
    try:
        first = wait_for("the first point", lambda: _newest_point(service), POINT_SECONDS, home.console)
        assert _volume(understudy) == ("/dev/sda", None)
        understudy.json("plan", "apply", REPOSITORY / "demo/web01.yaml")
        home.kill()

        failover = understudy.json("panic", "web01", "--yes")
        assert failover["state"] == "succeeded"
        understudy.json("take", "web01")
        assert _volume(understudy) == ("/dev/sda", "/dev/vda")
        recovered = fetch(failover["instances"][0]["addresses"]["8000"])
        assert recovered

        repair = enrolled(tmp_path / "repair", service, "web01")
        failback = Program(understudy.line("failback", failover["id"], "--yes"), tmp_path / "failback.log")
        try:
            home = _go_home(understudy, repair, disk, lambda: OnPremServer(tmp_path, disk, machine_id, ide=True))
        finally:
            failback.end()
        assert _volume(understudy) == ("/dev/sda", None)
        at_home = wait_for("orders at home", lambda: fetch(f"127.0.0.1:{home.http_port}") or None, BOOT_SECONDS)
        assert {order.id for order in recovered} <= {order.id for order in at_home}
        understudy.json("take", "web01")
        *later, eldest = (point["sent_bytes"] for point in service.points("web01"))
        assert len(later) >= 4
        assert eldest == first["sent_bytes"]
        assert max(later) < eldest / 10, "more was sent than what had changed"
    finally:
        if home.exit_status is None:
            home.kill()


def _newest_point(service: Service) -> Any:
    if not any(server["name"] == "web01" for server in service.ask("servers", "--json").document):
        return None  # not enrolled yet
    points = service.points("web01")
    return points[0] if points else None


def _volume(understudy: CommandLine) -> tuple[str, str | None]:
    """(path, found_at) of the server's only volume, as the service shows it."""
    (server,) = understudy.json("servers")
    (volume,) = server["volumes"]
    return volume["path"], volume["found_at"]


def _go_home(understudy: CommandLine, repair: Agent, disk: Path, boot: Any) -> OnPremServer:
    """Act as the repaired site, as the failback's steps ask, to its end; the machine that was booted at home."""
    pulled: set[str] = set()
    machine: list[OnPremServer] = []

    def over() -> Any:
        (run,) = [run for run in understudy.json("runs") if run["kind"] == "failback"] or [None]
        if run is None:
            return None
        asked = next((step["waits_for"] or "" for step in run["steps"] if step["state"] == "running"), "")
        command = re.search(r"understudy-agent pull (\S+)", asked)
        if command and command[1] not in pulled:
            assert repair.pull(disk, command[1]).code == 0
            pulled.add(command[1])
        elif asked.startswith("start the repaired machine") and not machine:
            machine.append(boot())
        return None if run["state"] == "running" else run

    run = wait_for("the failback's end", over, FAILBACK_SECONDS)
    assert run["state"] == "succeeded", [step["error"] for step in run["steps"]]
    return machine[0]
