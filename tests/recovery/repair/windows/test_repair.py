from __future__ import annotations

import json
import uuid
from pathlib import Path

import pytest

from agent.protocol.errors import RecoveryError, UsageError
from recovery.repair.draft import Draft
from recovery.repair.record import Finding, KeyChange, RepairRecord, load, save
from recovery.repair.target import Bus, Firmware, Target
from recovery.repair.windows.edit import difference
from recovery.repair.windows.firstboot import Address, Job
from recovery.repair.windows.hive import Hive
from recovery.repair.windows.hivedraft import HiveDraft
from recovery.repair.windows.repair import draft_repair, undo_keys, write_keys
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
    assert [finding.repaired for finding in findings] == [True]
    assert set(difference(windows_10, Hive("SYSTEM", files.contents[SYSTEM]))) == {
        (change.key, change.value) for change in keys
    }
    assert files.written == [SYSTEM]


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
    assert undone == []
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
    assert files.written == ["/WINDOWS/system32/CONFIG/system"]


def test_a_name_that_is_there_in_two_spellings_is_refused() -> None:
    files = guest(small_system(), **{"/windows/system32/config/system": small_system()})
    with pytest.raises(RecoveryError, match="2 times"):
        repair(files)


def test_the_boot_manager_is_put_where_every_firmware_looks() -> None:
    files = guest(small_system(0))
    del files.contents["esp:/EFI/Boot/bootx64.efi"]
    findings, keys = repair(files)
    assert files.contents["esp:/EFI/Boot/bootx64.efi"] == files.contents[MANAGER]
    assert [finding.repaired for finding in findings] == [True]
    assert keys == ()


def test_an_efi_partition_without_a_boot_manager_cannot_be_mended() -> None:
    files = guest(small_system(0), **{MANAGER: b"no program"})
    del files.contents["esp:/EFI/Boot/bootx64.efi"]
    findings, _ = repair(files)
    assert [(finding.level, finding.repaired) for finding in findings] == [("stop", False)]


def test_a_windows_for_uefi_is_not_booted_by_a_bios() -> None:
    findings, _ = repair(guest(small_system(0)), Target(bus=Bus.NVME, firmware=Firmware.BIOS))
    assert [finding.way_out for finding in findings] == ["boot it with UEFI"]


def test_the_operators_driver_is_put_into_a_windows_without_one() -> None:
    files = guest(small_system())
    findings, keys = repair(files, VIRTIO, supplied={"viostor": program(b"theirs")})
    assert files.contents["/Windows/System32/drivers/viostor.sys"] == program(b"theirs")
    assert any(change.key == rf"{CS}\Services\viostor" for change in keys)
    assert all(finding.repaired for finding in findings)


def test_what_is_no_driver_is_not_put_into_windows() -> None:
    files = guest(small_system())
    with pytest.raises(RecoveryError, match="no 64-bit Windows driver"):
        repair(files, VIRTIO, supplied={"viostor": b"MZ"})
    assert files.written == []


def test_the_first_boots_job_is_left_for_our_agent() -> None:
    files = guest(small_system(0), **{"/ProgramData/Understudy/agent.json": b"{}"})
    addresses = [Address(card=0, address="10.0.0.5/24", gateway="10.0.0.1", dns=["10.0.0.2"])]
    repair(files, job=Job(run_id="r1", machine_id=str(uuid.UUID(int=5)), addresses=addresses))
    job = json.loads(files.contents["/ProgramData/Understudy/first-boot.json"])
    assert (job["version"], job["run"], job["machine"]) == (1, "r1", str(uuid.UUID(int=5)))
    assert [step["do"] for step in job["steps"]] == ["drivers", "disks-online", "address"]
    assert job["steps"][2] | {} == {
        "do": "address",
        "card": 0,
        "address": "10.0.0.5/24",
        "gateway": "10.0.0.1",
        "dns": ["10.0.0.2"],
    }


def test_static_addresses_without_our_agent_are_a_warning() -> None:
    job = Job(run_id="r1", machine_id=str(uuid.UUID(int=5)), addresses=[Address(card=0, address="10.0.0.5/24")])
    findings, _ = repair(guest(small_system(0)), job=job)
    assert [(finding.level, finding.repaired) for finding in findings] == [("warn", False)]


@pytest.mark.parametrize("address", ["10.0.0.5", "10.0.0.5/99", "calc.exe", "10.0.0.5/24; format c:"])
def test_what_is_no_address_never_gets_into_a_job(address: str) -> None:
    files = guest(small_system(0), **{"/ProgramData/Understudy/agent.json": b"{}"})
    job = Job(run_id="r1", machine_id=str(uuid.UUID(int=5)), addresses=[Address(card=0, address=address)])
    with pytest.raises(UsageError, match="correct the plan"):
        repair(files, job=job)


def test_the_record_keeps_keys_and_shows_them(tmp_path: Path) -> None:
    findings, keys = repair(guest(small_system()))
    record = RepairRecord(system="Windows", target=str(NVME), findings=findings, changes=keys)
    save(record, tmp_path / "record")
    assert load(tmp_path / "record") == record
    assert rf"-{SYSTEM}\{CS}\Services\stornvme\Start = type 4: 03000000" in record.diff()
    assert rf"+{SYSTEM}\{CS}\Services\stornvme\Start = type 4: 00000000" in record.diff()
