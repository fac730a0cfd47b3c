"""A Windows' disks, as far as boot repair looks at them, repaired and undone in a real worker. Nobody boots them."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from agent.protocol.errors import RecoveryError
from recovery.repair.record import KeyChange
from recovery.repair.repair import repair, undo
from recovery.repair.target import Bus, Firmware, Target
from recovery.repair.windows.bcd import Place, place_of
from recovery.repair.windows.edit import difference
from recovery.repair.windows.firstboot import SCRIPT, SERVICE
from recovery.repair.windows.hive import Hive
from recovery.repair.windows.supplied import Supplied
from tests.recovery.repair.images import overlay
from tests.recovery.repair.windows.disks import (
    DISK,
    ESP,
    MIB,
    NEEDS,
    SYSTEM,
    WINDOWS,
    bios_disk,
    inside,
    uefi_disk,
)
from tests.recovery.repair.windows.making import program
from tests.recovery.repair.windows.test_bcd import LOADER, MANAGER, element

pytestmark = NEEDS


def left_open(image: Path) -> Path:
    """The disk as of a server that was running: its NTFS journal says that it was in use (and holds nothing)."""
    content = image.read_bytes()
    journal = content.index(b"\xff" * MIB)
    page = bytearray(4096)
    page[:4] = b"RSTR"
    # update sequence; checkpoint; page sizes; restart area at 0x30; version 1.1
    struct.pack_into("<2HQ2I3H", page, 4, 0x1E, 9, 0, 4096, 4096, 0x30, 1, 1)
    struct.pack_into("<H", page, 0x1E, 1)
    # last sequence; one client, in use; flags; 64 bits of sequence numbers; lengths; the journal's size
    struct.pack_into("<Q4HI2HQI2H", page, 0x30, 0x100, 1, 0xFFFF, 0, 0, 0x2C, 0x30 + 0xA0, 0x30, 2 * MIB, 0, 0x30, 0x40)
    struct.pack_into("<2Q4H4xI8s", page, 0x60, 0, 0, 0xFFFF, 0xFFFF, 0, 0, 8, b"N\0T\0F\0S\0")
    for end in range(510, 4096, 512):
        page[end : end + 2] = b"\1\0"
    with open(image, "r+b") as file:
        for copy in (0, 4096):
            file.seek(journal + copy)
            file.write(page)
    return image


def test_a_journal_that_cannot_be_replayed_is_not_thrown_away(windows_10: Hive, tmp_path: Path) -> None:
    volume = overlay(left_open(uefi_disk(tmp_path, windows_10)), tmp_path / "volume.qcow2")
    before = volume.read_bytes()
    with pytest.raises(RecoveryError, match=r"journal of the NTFS volume .* cannot be replayed"):
        repair([volume], Target(bus=Bus.NVME, firmware=Firmware.UEFI), tmp_path / "record")
    assert volume.read_bytes() == before


def test_a_windows_for_uefi_is_repaired_and_undone(windows_10: Hive, tmp_path: Path) -> None:
    volume = overlay(uefi_disk(tmp_path, windows_10), tmp_path / "volume.qcow2")
    record = repair([volume], Target(bus=Bus.NVME, firmware=Firmware.UEFI), tmp_path / "record")
    assert record.unrepaired == ()
    read = inside(volume, tmp_path)
    changed = difference(windows_10, Hive("SYSTEM", read(SYSTEM)))
    assert {key for key, _ in changed} == {
        r"ControlSet001\Services\stornvme\StartOverride",
        rf"ControlSet001\Services\{SERVICE}",
    }
    assert read("Windows/Understudy/first-boot.cmd") == SCRIPT
    assert read("esp:/EFI/Boot/bootx64.efi") == program(b"manager")
    store = Hive("BCD", read("esp:/EFI/Microsoft/Boot/BCD"))
    for thing, number, partition in ((MANAGER, "11000001", ESP), (LOADER, "21000001", WINDOWS)):
        value = store.value(element(thing, number), "Element")
        assert value is not None
        assert place_of(value.data) == Place.gpt(DISK, partition)
    report = undo([volume], tmp_path / "record")
    assert report.left == []
    assert difference(windows_10, Hive("SYSTEM", inside(volume, tmp_path)(SYSTEM))) == {}


@pytest.mark.skipif(not shutil.which("ntfssecaudit"), reason="needs ntfssecaudit (ntfs-3g)")
def test_what_is_added_may_be_changed_by_administrators_alone(windows_10: Hive, tmp_path: Path) -> None:
    volume = overlay(uefi_disk(tmp_path, windows_10), tmp_path / "volume.qcow2")
    supplied = Supplied({"viostor.sys": program(), "netkvm.inf": b"[Version]"})
    repair([volume], Target(bus=Bus.VIRTIO, firmware=Firmware.UEFI), tmp_path / "record", supplied=supplied)
    inside(volume, tmp_path)
    for path in (
        "System32/drivers/viostor.sys",
        "Understudy",
        "Understudy/first-boot.cmd",
        "Understudy/drivers",
        "Understudy/drivers/netkvm.inf",
    ):
        audit = ["ntfssecaudit", "-v", str(tmp_path / "ntfs"), f"/Windows/{path}"]
        said = subprocess.run(audit, capture_output=True, text=True, check=True).stdout
        assert "Windows owner S-1-5-32-544" in said
        assert re.search(r"mode 0\d\d[4-5]", said), f"{path}: {said}"


def test_a_hibernated_windows_is_refused_and_its_volume_stays_as_it_was(windows_10: Hive, tmp_path: Path) -> None:
    volume = overlay(uefi_disk(tmp_path, windows_10, b"HIBR"), tmp_path / "volume.qcow2")
    before = volume.read_bytes()
    with pytest.raises(RecoveryError, match="hibernat"):
        repair([volume], Target(bus=Bus.NVME, firmware=Firmware.UEFI), tmp_path / "record")
    assert volume.read_bytes() == before


def test_a_windows_for_bios_is_found_behind_its_system_partition(windows_7: Hive, tmp_path: Path) -> None:
    image = bios_disk(tmp_path, windows_7, drivers=("msahci",))
    volume = overlay(image, tmp_path / "volume.qcow2")
    record = repair([volume], Target(bus=Bus.AHCI, firmware=Firmware.BIOS), tmp_path / "record")
    assert record.unrepaired == ()
    assert {change.key for change in record.changes if isinstance(change, KeyChange)} == {
        r"ControlSet001\services\msahci",
        rf"ControlSet001\services\{SERVICE}",
    }
