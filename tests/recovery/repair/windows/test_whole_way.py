"""A Windows' disk there and back, by real processes: protected as an image file by an agent, recovered with the drivers
that the administrator supplied, and pulled home with nothing of it left.

A boot sector stands in for the Windows that a BIOS starts; what UEFI is given to start is none, and is switched off.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from recovery.repair.windows.edit import difference
from recovery.repair.windows.firstboot import SAYS_UP, SCRIPT, SERVICE
from recovery.repair.windows.hive import Hive
from tests.faults.harness import BINARIES, Agent, Service, ended, enrolled, served
from tests.patience import eventually
from tests.recovery.repair.windows.disks import NEEDS, SYSTEM, bios_disk, files_of, inside, stand_in, uefi_disk
from tests.recovery.repair.windows.making import program

pytestmark = [*NEEDS, pytest.mark.timeout(1200)]

DRIVERS = {"viostor.sys": program(b"disk"), "netkvm.inf": b"[Version]", "netkvm.sys": program(b"card")}
PLAN = "plan: windows\ngroups:\n  - servers:\n      - {name: web01, cpus: 1, memory_mib: 256}\n"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with served(tmp_path / "service") as made:
        yield made


def protected(agent: Agent, service: Service, disk: Path) -> None:
    """The daemon tells of the disk, and makes its first point."""
    agent.protect(disk)
    daemon = agent.begin("run")
    try:
        eventually(lambda: service.points("web01"))
    finally:
        daemon.terminate()
        ended(daemon)


def supply(service: Service) -> None:
    folder = service.data / "drivers"
    folder.mkdir()
    for name, content in DRIVERS.items():
        (folder / name).write_bytes(content)


def newest_run(service: Service) -> dict[str, Any]:
    return dict(service.ask("runs", "--json").document[0])


def step(run: dict[str, Any], name: str) -> dict[str, Any]:
    return next(one for one in run["steps"] if one["name"] == name)


def check_repaired(service: Service, run: dict[str, Any], home: Hive, folder: Path, start_mib: int) -> None:
    """What the run's own volume has beside the home machine's, and where that can be read."""
    repaired = step(run, "repair web01")
    assert (repaired["state"], repaired["error"]) == ("done", None)
    (records,) = (service.data / "repairs" / run["id"]).iterdir()
    diff = (records / "repair.diff").read_text()
    assert rf"+{'/' + SYSTEM}\ControlSet001" in diff
    assert rf"\{SERVICE}\ImagePath" in diff
    assert "/Windows/System32/drivers/viostor.sys: none ->" in diff
    (volume,) = (service.data / "site" / "instances").glob("*/volume-0.qcow2")
    read = inside(volume, folder, start_mib)
    hive = Hive("SYSTEM", read(SYSTEM))
    changes = json.loads((records / "repair.json").read_text())["changes"]
    wanted = {(change["key"], change["value"]) for change in changes if change.get("hive") == "/" + SYSTEM}
    assert set(difference(home, hive)) == wanted
    assert hive.dword(r"ControlSet001\Services\viostor", "Start") == 0
    assert read("Windows/System32/drivers/viostor.sys") == DRIVERS["viostor.sys"]
    assert read("Windows/Understudy/drivers/netkvm.inf") == DRIVERS["netkvm.inf"]
    assert read("Windows/Understudy/first-boot.cmd") == SCRIPT


def go_home(service: Service, run: dict[str, Any], agent: Agent, disk: Path, switch_off: bool) -> dict[str, Any]:
    """Act as the repaired site, as the failback's steps ask; how it ended."""
    target = enrolled(agent.folder.with_name("target"), service, "web01")
    command = [str(BINARIES / "understudy"), "failback", run["id"], "--yes", "--data", str(service.data)]
    with open(service.folder / "failback.log", "w") as log:
        failback = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    pulled: set[str] = set()
    daemon: subprocess.Popen[str] | None = None
    try:
        while True:  # pytest has a limit for it
            time.sleep(0.3)
            now = newest_run(service)
            if now["kind"] != "failback":
                continue
            if now["state"] != "running":
                return now
            at_work = next((one for one in now["steps"] if one["state"] == "running"), {"name": "", "waits_for": ""})
            waits_for = at_work["waits_for"] or ""
            asked = re.search(r"understudy-agent pull (\S+)", waits_for)
            if asked and asked[1] not in pulled:
                assert target.pull(disk, asked[1]).code == 0
                pulled.add(asked[1])
            elif at_work["name"] == "shut down web01" and switch_off:
                with contextlib.suppress(OSError, ValueError):  # it has ended already
                    (pid,) = (service.data / "site" / "instances").glob("*/pid")
                    os.kill(int(pid.read_text()), signal.SIGTERM)
            elif waits_for.startswith("start the repaired machine") and daemon is None:
                daemon = agent.begin("run")
    finally:
        failback.terminate()
        failback.wait()
        if daemon is not None:
            daemon.terminate()
            ended(daemon)


@pytest.mark.parametrize("firmware", ["bios", "uefi"])
def test_a_windows_is_recovered_with_supplied_drivers_and_goes_home_as_it_was(
    firmware: str, request: pytest.FixtureRequest, service: Service, tmp_path: Path
) -> None:
    home: Hive = request.getfixturevalue("windows_7" if firmware == "bios" else "windows_10")
    starts = 17 if firmware == "bios" else 41
    disk = bios_disk(tmp_path, home, stand_in(SAYS_UP)) if firmware == "bios" else uefi_disk(tmp_path, home)
    before = shutil.copyfile(disk, tmp_path / "before")
    agent = enrolled(tmp_path / "agent", service, "web01")
    protected(agent, service, disk)

    target = "web01"
    if firmware == "uefi":  # nothing will say that it is up
        (tmp_path / "plan.yaml").write_text(PLAN)
        assert service.ask("plan", "apply", tmp_path / "plan.yaml").code == 0
        target = "windows"
    assert "there is no viostor.sys and no netkvm.inf here" in service.ask("plan", "check", target).out
    supply(service)
    assert "viostor.sys" not in service.ask("plan", "check", target).out
    steps = service.ask("panic", target, "--dry-run").out
    assert "own copy of the point boot here, if it would not as it is" in steps
    assert (SAYS_UP in steps) == (firmware == "bios")

    panic = service.ask("panic", target, "--declare-dead", "web01", "--yes")
    assert panic.code == 0, panic.err
    run = newest_run(service)
    assert run["state"] == "succeeded"
    check_repaired(service, run, home, tmp_path, starts)

    failback = go_home(service, run, agent, disk, switch_off=firmware == "uefi")
    assert failback["state"] == "succeeded", failback
    undone = step(failback, "undo the boot repair of web01")
    assert undone["error"] is None
    assert difference(home, Hive("SYSTEM", inside(disk, tmp_path, starts)(SYSTEM))) == {}
    there, was = files_of(disk, tmp_path, starts), files_of(before, tmp_path, starts)
    assert {path for path in {**there, **was} if there.get(path) != was.get(path)} == {SYSTEM}


def test_a_windows_without_virtio_drivers_is_started_on_ahci(service: Service, tmp_path: Path, windows_7: Hive) -> None:
    """Nobody supplied any, so it gets what it has drivers for."""
    disk = bios_disk(tmp_path, windows_7, stand_in(SAYS_UP), drivers=("atapi", "msahci"))
    agent = enrolled(tmp_path / "agent", service, "web01")
    protected(agent, service, disk)
    assert "it starts on AHCI disks and an e1000e card" in service.ask("plan", "check", "web01").out

    panic = service.ask("panic", "web01", "--declare-dead", "web01", "--yes")
    assert panic.code == 0, panic.err
    run = newest_run(service)
    assert run["state"] == "succeeded"
    repaired = step(run, "repair web01")
    assert "it has no driver for virtio disks, and none is supplied: it starts on ahci" in repaired["result"]["note"]
    assert step(run, "launch web01")["result"]["devices"] == "ahci"
    (folder,) = (service.data / "site" / "instances").iterdir()
    arguments = Path(f"/proc/{(folder / 'pid').read_text().strip()}/cmdline").read_text()
    assert "ide-hd,bus=ide.0" in arguments
    assert "e1000e,netdev=net0" in arguments
    assert "virtio-blk" not in arguments
    hive = Hive("SYSTEM", inside(folder / "volume-0.qcow2", tmp_path, 17)(SYSTEM))
    assert hive.dword(r"ControlSet001\Services\msahci", "Start") == 0
    assert service.ask("end", run["id"], "--force").code == 0
