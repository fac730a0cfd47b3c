from __future__ import annotations

from pathlib import Path

import pytest

from agent.protocol.errors import RecoveryError
from recovery.repair.draft import Draft
from recovery.repair.record import Finding, KeyChange, RepairRecord, load, save
from recovery.repair.target import Bus, Firmware, Target
from recovery.repair.windows.edit import difference
from recovery.repair.windows.firstboot import SERVICE
from recovery.repair.windows.hive import Hive
from recovery.repair.windows.hivedraft import HiveDraft
from recovery.repair.windows.repair import draft_repair, fitting, undo_keys, write_keys
from recovery.repair.windows.supplied import Supplied
from tests.recovery.repair.windows.making import (
    MemoryFiles,
    changed_pages,
    entry,
    headed,
    hive_with,
    new_log,
    program,
    sealed,
)
from tests.recovery.repair.windows.test_bcd import store

pytestmark = pytest.mark.usefixtures("hivex")

SYSTEM = "/Windows/System32/config/SYSTEM"
BCD = "esp:/EFI/Microsoft/Boot/BCD"
NVME = Target(bus=Bus.NVME, firmware=Firmware.UEFI)
VIRTIO = Target(bus=Bus.VIRTIO, firmware=Firmware.UEFI)
MANAGER = "esp:/EFI/Microsoft/Boot/bootmgfw.efi"
CS = "ControlSet001"
FIRST_BOOT = "/Windows/Understudy/first-boot.cmd"


def guest(system: bytes, **more: bytes) -> MemoryFiles:
    """A Windows that lacks nothing but what its SYSTEM hive lacks."""
    return MemoryFiles(
        {
            SYSTEM: system,
            BCD: store().result().content,
            MANAGER: program(b"manager"),
            "esp:/EFI/Boot/bootx64.efi": program(b"manager"),
            "/Windows/System32/drivers/stornvme.sys": program(b"nvme"),
            **more,
        }
    )


def small_system(start: int = 3) -> bytes:
    values = {("Select", name): (4, b"\1\0\0\0") for name in ("Default", "Current")}
    values[rf"{CS}\Services\stornvme", "Start"] = (4, start.to_bytes(4, "little"))
    values[rf"{CS}\Services\stornvme", "Group"] = (1, "SCSI miniport\0".encode("utf-16-le"))
    return hive_with(values, "SYSTEM")


def repair(
    files: MemoryFiles, target: Target = NVME, **more: object
) -> tuple[tuple[Finding, ...], tuple[KeyChange, ...]]:
    """As the orchestration does it: draft, then write."""
    draft = Draft(files)
    findings, keys = draft_repair(draft, files, target, **more)
    for change in draft.changes():
        files.write(change.path, change.after or b"")
    write_keys(files, keys)
    return findings, keys


def test_a_real_windows_10_is_repaired_for_nvme_and_differs_in_nothing_else(windows_10: Hive) -> None:
    files = guest(windows_10.content)
    findings, keys = repair(files)
    assert [(finding.level, finding.repaired) for finding in findings] == [("stop", True), ("warn", True)]
    assert set(difference(windows_10, Hive("SYSTEM", files.contents[SYSTEM]))) == {
        (change.key, change.value) for change in keys
    }
    assert files.written == [FIRST_BOOT, SYSTEM]


def test_a_repaired_windows_is_left_alone() -> None:
    files = guest(small_system())
    repair(files)
    files.written.clear()
    assert repair(files) == ((), ())
    assert files.written == []


def test_undo_brings_back_every_key_and_value(windows_10: Hive) -> None:
    files = guest(windows_10.content, **{"/Windows/System32/drivers/viostor.sys": program(b"virtio")})
    _, keys = repair(files, VIRTIO)
    assert len(keys) > 20
    undone, left = undo_keys(files, keys)
    assert (len(undone), left) == (len(keys), [])
    assert difference(windows_10, Hive("SYSTEM", files.contents[SYSTEM])) == {}


def test_undo_leaves_what_was_changed_since() -> None:
    files = guest(small_system())
    _, keys = repair(files)
    key = rf"{CS}\Services\stornvme"
    since = KeyChange(hive=SYSTEM, key=key, value="Start", before=(4, bytes(4)), after=(4, b"\4\0\0\0"))
    write_keys(files, [since])
    undone, left = undo_keys(files, keys)
    assert all(SERVICE in name for name in undone)
    assert left == [rf"{SYSTEM}\{key}\Start: it was changed since"]
    assert Hive("SYSTEM", files.contents[SYSTEM]).dword(key, "Start") == 4


def test_undo_may_be_repeated() -> None:
    files = guest(small_system())
    _, keys = repair(files)
    undo_keys(files, keys)
    once = dict(files.contents)
    undo_keys(files, keys)
    assert files.contents == once


def test_a_dirty_hive_is_repaired_with_what_its_log_holds() -> None:
    before = sealed(small_system(), 100)
    lately = HiveDraft("SYSTEM", Hive("SYSTEM", before))
    lately.set(rf"{CS}\Services\lately", "installed", 3, b"x" * 5000, "")
    after = lately.result().content
    log = new_log(before, 101, entry(after, changed_pages(before, after), 101))
    files = guest(headed(before, 101, 100), **{f"{SYSTEM}.LOG1": log, f"{SYSTEM}.LOG2": b""})
    repair(files)
    repaired = Hive("SYSTEM", files.contents[SYSTEM])
    assert repaired.value(rf"{CS}\Services\lately", "installed").data == b"x" * 5000
    assert repaired.dword(rf"{CS}\Services\stornvme", "Start") == 0


def test_a_dirty_hive_without_its_logs_is_refused_and_stays_as_it_is() -> None:
    files = guest(headed(small_system(), 8, 7))
    with pytest.raises(RecoveryError, match="hold the rest"):
        repair(files)
    assert files.written == []


def test_undo_leaves_no_word_of_what_the_guest_took_back_itself() -> None:
    files = guest(small_system())
    before = Hive("SYSTEM", files.contents[SYSTEM])
    _, keys = repair(files)
    service = [change for change in keys if SERVICE in change.key]
    undo_keys(files, service)  # as the service removes itself
    undone, left = undo_keys(files, keys)
    assert not [name for name in undone if SERVICE in name]
    assert left == []
    assert difference(before, Hive("SYSTEM", files.contents[SYSTEM])) == {}


@pytest.mark.parametrize("header", [b"hibr", b"HIBR", b"rstr", b"RSTR", b"what"])
def test_a_windows_that_sleeps_is_refused(header: bytes) -> None:
    files = guest(small_system(), **{"/hiberfil.sys": header + bytes(9000)})
    with pytest.raises(RecoveryError, match=r"hibernat.*full shutdown"):
        repair(files)
    assert files.written == []


@pytest.mark.parametrize("header", [b"", b"wake\0\1\2", b"WAKE", bytes(4096) + b"rest of an old session"])
def test_a_windows_that_woke_up_since_is_repaired(header: bytes) -> None:
    files = guest(small_system(), **{"/hiberfil.sys": header})
    repair(files)
    assert files.written


def test_names_are_found_whatever_their_case() -> None:
    files = MemoryFiles(
        {
            "/WINDOWS/system32/CONFIG/system": small_system(),
            "esp:/efi/MICROSOFT/boot/bcd": store().result().content,
            "esp:/efi/BOOT/BOOTX64.EFI": program(),
            "/WINDOWS/system32/DRIVERS/STORNVME.SYS": program(),
        }
    )
    repair(files)
    assert files.written == ["/WINDOWS/Understudy/first-boot.cmd", "/WINDOWS/system32/CONFIG/system"]


def test_a_driver_is_put_into_the_folder_that_is_there_whatever_its_case() -> None:
    files = MemoryFiles(
        {
            "/WINDOWS/system32/CONFIG/system": small_system(),
            "/WINDOWS/system32/DRIVERS/disk.sys": program(),
            BCD: store().result().content,
            "esp:/EFI/Boot/bootx64.efi": program(),
        }
    )
    repair(files, VIRTIO, supplied=Supplied({"viostor.sys": program(b"theirs")}))
    assert files.contents["/WINDOWS/system32/DRIVERS/viostor.sys"] == program(b"theirs")
    assert not [path for path in files.contents if path.startswith("/Windows")]


def test_a_name_that_is_there_in_two_spellings_is_refused() -> None:
    files = guest(small_system(), **{"/windows/system32/config/system": small_system()})
    with pytest.raises(RecoveryError, match="2 times"):
        repair(files)


def test_the_boot_manager_is_put_where_every_firmware_looks() -> None:
    files = guest(small_system(0))
    del files.contents["esp:/EFI/Boot/bootx64.efi"]
    findings, keys = repair(files)
    assert files.contents["esp:/EFI/Boot/bootx64.efi"] == files.contents[MANAGER]
    assert [(finding.level, finding.repaired) for finding in findings] == [("stop", True), ("warn", True)]
    assert {change.key for change in keys} == {rf"{CS}\Services\{SERVICE}"}


def test_an_efi_partition_without_a_boot_manager_cannot_be_mended() -> None:
    files = guest(small_system(0), **{MANAGER: b"no program"})
    del files.contents["esp:/EFI/Boot/bootx64.efi"]
    findings, _ = repair(files)
    assert [(finding.level, finding.repaired) for finding in findings] == [("stop", False), ("warn", True)]


def test_a_windows_for_uefi_is_not_booted_by_a_bios() -> None:
    findings, _ = repair(guest(small_system(0)), Target(bus=Bus.NVME, firmware=Firmware.BIOS))
    assert [finding.way_out for finding in findings if not finding.repaired] == ["boot it with UEFI"]


def test_the_operators_driver_is_put_into_a_windows_without_one() -> None:
    files = guest(small_system())
    findings, keys = repair(files, VIRTIO, supplied=Supplied({"viostor.sys": program(b"theirs")}))
    assert files.contents["/Windows/System32/drivers/viostor.sys"] == program(b"theirs")
    assert any(change.key == rf"{CS}\Services\viostor" for change in keys)
    assert all(finding.repaired for finding in findings)


@pytest.mark.parametrize(
    ("there", "supplied", "instead", "bus"),
    [
        (["storahci"], {}, Bus.AHCI, Bus.AHCI),
        (["msahci"], {}, Bus.AHCI, Bus.AHCI),
        (["storahci", "viostor"], {}, Bus.AHCI, Bus.VIRTIO),
        (["storahci"], {"viostor.sys": program()}, Bus.AHCI, Bus.VIRTIO),
        (["storahci"], {}, None, Bus.VIRTIO),
        ([], {}, Bus.AHCI, Bus.VIRTIO),
    ],
)
def test_a_windows_without_a_driver_for_the_bus_is_fitted_for_another_that_it_has_one_for(
    there: list[str], supplied: dict[str, bytes], instead: Bus | None, bus: Bus
) -> None:
    files = guest(small_system(), **{f"/Windows/System32/drivers/{name}.sys": program() for name in there})
    target, findings = fitting(files, VIRTIO, Supplied(supplied), instead)
    assert (target.bus, target.firmware) == (bus, VIRTIO.firmware)
    assert [(found.level, found.repaired) for found in findings] == ([("warn", True)] if bus is Bus.AHCI else [])


def test_what_is_no_driver_is_not_put_into_windows() -> None:
    files = guest(small_system())
    with pytest.raises(RecoveryError, match="no 64-bit Windows driver"):
        repair(files, VIRTIO, supplied=Supplied({"viostor.sys": b"MZ"}))
    assert files.written == []


def test_the_record_keeps_keys_and_shows_them(tmp_path: Path) -> None:
    findings, keys = repair(guest(small_system()))
    record = RepairRecord(system="Windows", target=str(NVME), findings=findings, changes=keys)
    save(record, tmp_path / "record")
    assert load(tmp_path / "record") == record
    assert rf"-{SYSTEM}\{CS}\Services\stornvme\Start = REG_DWORD 3" in record.diff()
    assert rf"+{SYSTEM}\{CS}\Services\stornvme\Start = REG_DWORD 0" in record.diff()
    assert rf"{SERVICE}\DependOnService = REG_MULTI_SZ 'PlugPlay'" in record.diff()
