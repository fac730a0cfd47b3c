"""A server goes home onto a machine that has nothing but the rescue medium: for real, in QEMU."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demo import image as demo_image
from demo.inject import inject
from demo.lab import HOST_AS_SEEN_BY_GUESTS, REPOSITORY, CommandLine, Program, wait_for
from demo.shop import fetch
from rescue.image import build
from tests.faults.harness import Agent, Service, nothing_left_behind
from tests.faults.machine import in_private_mounts
from tests.rescue.lab import BareMachine, by_uefi_from_a_stick

PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
TOOLS = ("mmdebstrap", "depmod", "grub-mkrescue", "xorriso", "mke2fs", "sfdisk", "debugfs", "qemu-system-x86_64")
MISSING = [tool for tool in TOOLS if shutil.which(tool, path=PATH) is None]
DISK_BYTES = demo_image.DISK_BYTES
BOOT_SECONDS = 400
MIB = 1 << 20
pytestmark = [
    pytest.mark.qemu,
    pytest.mark.long,
    pytest.mark.root,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)} (make setup)"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can give the source's agent a /dev of its own"),
]


@pytest.fixture(scope="module")
def medium(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("medium") / "rescue.iso"
    build(made, REPOSITORY / ".cache")
    return made


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    made = Service(tmp_path / "service")
    made.start()
    yield made
    commands = CommandLine("understudy", ["--data", made.data], tmp_path / "commands.log")
    for run in commands.json("runs"):
        commands.json("end", run["id"], "--force")
    assert made.stop() == 0
    assert "Traceback" not in made.log(), made.log()
    assert nothing_left_behind(tmp_path) == []


def protect(service: Service, folder: Path) -> Path:
    """The demonstration's server, with a recovery point, as if its own agent had made it: under the same path."""
    disk = folder / "web01.raw"
    subprocess.run(["cp", "--sparse=always", demo_image.build(REPOSITORY / ".cache"), disk], check=True)
    url = f"https://{HOST_AS_SEEN_BY_GUESTS}:{service.port}"
    order = {"url": url, "token": service.token("--name", "web01"), "protect": ["/dev/vda"]}
    inject(disk, "/etc/understudy/enroll.json", json.dumps(order).encode())
    devices = folder / "dev"
    devices.mkdir()
    for name, minor in (("null", 3), ("zero", 5), ("random", 8), ("urandom", 9)):
        os.mknod(devices / name, 0o20666, os.makedev(1, minor))
    (devices / "vda").symlink_to(disk)
    agent = Agent(folder / "agent", service)
    agent.prefix = in_private_mounts(f"mount --bind {devices} /dev")
    agent.enroll("web01")
    agent.protect("/dev/vda")
    agent.push().document  # noqa: B018  # asserts
    return disk


@pytest.mark.parametrize("kind", ["empty", "stale"])
def test_a_failed_over_server_goes_home_by_the_rescue_medium(
    kind: str, service: Service, medium: Path, tmp_path: Path
) -> None:
    source = protect(service, tmp_path)
    understudy = CommandLine("understudy", ["--data", service.data], tmp_path / "commands.log")
    understudy.json("plan", "apply", REPOSITORY / "demo/web01.yaml")
    failover = understudy.json("panic", "web01", "--yes")
    assert failover["state"] == "succeeded"

    home = tmp_path / "home.raw"
    if kind == "empty":
        with home.open("wb") as file:
            file.truncate(DISK_BYTES + 64 * MIB)  # a machine has what disk it has, as long as it is no smaller
        source.unlink()
    else:
        source.rename(home)
        with home.open("r+b") as file:  # it suffered, and would not start
            file.write(bytes(MIB))
    failback = Program(understudy.line("failback", failover["id"], "--yes"), tmp_path / "failback.log")
    machine = BareMachine(tmp_path, medium, home)
    try:
        run = _bring_home(machine, service, understudy)
        orders = wait_for("orders at home", lambda: fetch(f"127.0.0.1:{machine.http_port}") or None, BOOT_SECONDS)
        assert orders
        assert failback.end() == 0
    finally:
        if failback.exit_status is None:
            failback.end()
        machine.close()
    assert run["state"] == "succeeded"
    used_bytes = home.stat().st_blocks * 512
    if kind == "stale":
        assert run["received_bytes"] < used_bytes / 20, "more came than what differs"
    (server,) = understudy.json("servers")
    assert server["state"] == "protected"


def test_it_starts_by_uefi_from_a_stick_and_knows_other_hardware(
    service: Service, medium: Path, tmp_path: Path
) -> None:
    protect(service, tmp_path)
    disk = tmp_path / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(DISK_BYTES)
    machine = BareMachine(tmp_path, medium, disk, by_uefi_from_a_stick(tmp_path, medium, disk))
    understudy = CommandLine("understudy", ["--data", service.data], tmp_path / "commands.log")
    try:
        pair(machine, service, understudy)
        machine.expect(r"/dev/nvme0n1  1.0 GiB  QEMU NVMe Ctrl  NV1  holds: nothing", 120)
        machine.expect(r"/dev/sda .*QEMU HARDDISK", 30)  # the stick
    finally:
        machine.close()


def pair(machine: BareMachine, service: Service, understudy: CommandLine) -> None:
    machine.expect("Where is the Understudy service", BOOT_SECONDS)
    machine.type(f"{HOST_AS_SEEN_BY_GUESTS}:{service.port}")
    code = machine.expect(r"understudy pair (\S+) --server", 120)[1]
    understudy.json("pair", code, "--server", "web01")
    machine.expect("Paired: this machine is to become web01", 120)


def _bring_home(machine: BareMachine, service: Service, understudy: CommandLine) -> Any:
    """Do what the screen says, to the end of the failback."""
    pair(machine, service, understudy)
    machine.expect("Number of the disk", 120)
    machine.type("1")
    machine.expect("THIS IS LOST", 60)
    machine.expect("type the server's name, web01", 60)
    machine.type("web01")
    machine.expect("written, read back and right", BOOT_SECONDS)
    machine.expect("web01 is handed home: this machine starts from its own disk", 900)

    def over() -> Any:
        (run,) = [run for run in understudy.json("runs") if run["kind"] == "failback"]
        return None if run["state"] == "running" else run

    return wait_for("the failback's end", over, 900)
