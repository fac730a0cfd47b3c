"""The inventory of the machine that the tests run on, and identities of machines that it is not."""

from __future__ import annotations

import json
import os
import socket
import uuid
from pathlib import Path

import pytest

from agent.inventory import _addresses, boot_mode, collect, machine_id
from agent.report import inventory_text

FIRMWARE = "sys/class/dmi/id/product_uuid"


def write(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def test_the_inventory_of_this_machine_is_complete_and_travels_as_json() -> None:
    found = json.loads(json.dumps(collect()))
    assert found["hostname"] == socket.gethostname()
    assert found["kernel"] == os.uname().release
    assert found["boot_mode"] in ("uefi", "bios")
    assert found["cpus"] >= 1
    assert found["memory_mib"] > 0
    assert found["machine_id"] == machine_id()
    assert "lo" not in [interface["name"] for interface in found["network"]]
    for disk in found["disks"]:
        assert disk["name"].startswith("/dev/")
        assert disk["size_bytes"] > 0
        assert not disk["name"].startswith("/dev/loop")
    for finding in found["boot_findings"]:
        assert finding["level"] in ("ok", "warn", "stop")
        assert finding["what"]


def test_the_disk_that_holds_root_is_listed_with_it() -> None:
    number = Path("/").stat().st_dev
    if not Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").exists():
        pytest.skip("root is not on a block device here")
    mountpoints = [filesystem["mountpoint"] for disk in collect()["disks"] for filesystem in disk["filesystems"]]
    assert "/" in mountpoints


def test_a_machine_is_known_by_its_firmware_in_lower_case(tmp_path: Path) -> None:
    write(tmp_path, FIRMWARE, "4C4C4544-0042-3510-8054-B7C04F4A4E32\n")
    assert machine_id(tmp_path) == "4c4c4544-0042-3510-8054-b7c04f4a4e32"


@pytest.mark.parametrize(
    "firmware",
    [
        None,
        "00000000-0000-0000-0000-000000000000",
        "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF",
        "03000200-0400-0500-0006-000700080009",
        "Not Settable",
        "",
    ],
)
def test_firmware_that_identifies_nothing_falls_back_to_the_system(tmp_path: Path, firmware: str | None) -> None:
    if firmware is not None:
        write(tmp_path, FIRMWARE, firmware)
    by_name = machine_id(tmp_path)
    write(tmp_path, "etc/machine-id", "uninitialized\n")
    assert machine_id(tmp_path) == by_name
    write(tmp_path, "etc/machine-id", "3d1219c7c4c5404aaa1f6d2a48adfda4\n")
    by_system = machine_id(tmp_path)
    assert machine_id(tmp_path) == by_system != by_name
    assert uuid.UUID(by_system).version == uuid.UUID(by_name).version == 5


def test_the_boot_mode_is_what_the_firmware_left(tmp_path: Path) -> None:
    assert boot_mode(tmp_path) == "bios"
    (tmp_path / "sys/firmware/efi").mkdir(parents=True)
    assert boot_mode(tmp_path) == "uefi"


def test_without_the_ip_tool_addresses_are_found_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert _addresses(["lo"])["lo"] == ["127.0.0.1"]


def test_the_text_shows_what_tells_disks_apart_and_where_each_protected_volume_is() -> None:
    text = inventory_text({
        "disks": [{"name": "/dev/vda", "size_bytes": 1 << 30, "marks": ["dos:5f1c0de0", "1 ext:5f1c"]}],
        "protected": [
            {"path": "/dev/sda", "device": "/dev/vda", "problem": ""},
            {"path": "/dev/sdb", "device": None, "problem": "nobody knows"},
            {"path": "/srv/disk.raw", "device": "/srv/disk.raw", "problem": ""},
        ],
    })  # fmt: skip
    for line in (
        "    dos:5f1c0de0, 1 ext:5f1c",
        "  protected: /dev/sda, here /dev/vda",
        "  protected: /dev/sdb, here in doubt: nobody knows",
        "  protected: /srv/disk.raw",
    ):
        assert line in text.splitlines()
