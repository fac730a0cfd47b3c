"""The demonstration's server image: built (or found in the cache), booted in real QEMU, used, and switched off."""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from pathlib import Path

import pytest

from demo.image import build
from demo.inject import read_back
from demo.lab import REPOSITORY, OnPremServer, wait_for
from demo.shop import fetch

PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
TOOLS = ("mmdebstrap", "grub-mkimage", "mke2fs", "sfdisk", "debugfs", "qemu-system-x86_64")
MISSING = [tool for tool in TOOLS if shutil.which(tool, path=PATH) is None]
pytestmark = [
    pytest.mark.qemu,
    pytest.mark.long,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)} (make setup)"),
]


@pytest.fixture(scope="module")
def image() -> Path:
    return build(REPOSITORY / ".cache")


def test_it_boots_takes_orders_under_its_hardware_id_and_heeds_the_power_button(image: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    subprocess.run(["cp", "--sparse=always", image, disk], check=True)
    machine_id = str(uuid.uuid4())
    server = OnPremServer(tmp_path, disk, machine_id)
    try:
        orders = wait_for("orders", lambda: fetch(f"127.0.0.1:{server.http_port}") or None, 400, server.console)
        assert orders[0].machine == machine_id
        wait_for("a login prompt", lambda: b"login:" in server.console.read_bytes() or None, 200, server.console)
        server.shut_down(200)
        assert server.exit_status == 0
    finally:
        server.end()
    check = subprocess.run(["e2fsck", "-fn", f"{disk}?offset={1 << 20}"], capture_output=True, env={"PATH": PATH})
    assert check.returncode == 0, check.stdout


def test_it_boots_by_filesystem_uuid_so_that_other_disk_names_do_not_matter(image: Path) -> None:
    configuration = read_back(image, "/boot/grub/grub.cfg").decode()
    table = read_back(image, "/etc/fstab").decode()
    for text in (configuration, table):
        assert "UUID=" in text
        assert "/dev/" not in text


def test_the_agent_inside_is_the_one_of_this_checkout(image: Path) -> None:
    assert read_back(image, "/opt/understudy-agent/agent/cli.py") == (REPOSITORY / "agent/cli.py").read_bytes()
    assert (
        read_back(image, "/etc/systemd/system/understudy-agent.service")
        == (REPOSITORY / "agent/systemd/understudy-agent.service").read_bytes()
    )


def test_building_again_finds_it_in_the_cache(image: Path) -> None:
    said: list[str] = []
    assert build(REPOSITORY / ".cache", said.append) == image
    assert said == []
