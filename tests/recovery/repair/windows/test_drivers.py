from __future__ import annotations

import pytest

from recovery.repair.record import Finding
from recovery.repair.target import Bus
from recovery.repair.windows import drivers
from recovery.repair.windows.hive import Hive
from recovery.repair.windows.hivedraft import HiveDraft
from tests.recovery.repair.windows.making import hive_with

DRIVER_FILES = {f"system32/drivers/{name}.sys" for name in ("stornvme", "storahci", "msahci")}
CS = "ControlSet001"


def has_file(*more: str):
    return lambda name: name.lower() in DRIVER_FILES | {f"system32/drivers/{service}.sys" for service in more}


def repair(hive: Hive, bus: Bus, *more: str) -> tuple[HiveDraft, list[Finding]]:
    draft = HiveDraft("SYSTEM", hive)
    return draft, drivers.repair(draft, bus, has_file(*more))


def test_nvme_on_windows_10_needs_no_more_than_the_override_disarmed(windows_10: Hive) -> None:
    draft, findings = repair(windows_10, Bus.NVME)
    override = rf"{CS}\Services\stornvme\StartOverride"
    assert [(change.key, change.value, change.before, change.after) for change in draft.changes] == [
        (override, "0", (4, b"\3\0\0\0"), (4, bytes(4)))
    ]
    assert findings == [Finding("stop", "the disk driver stornvme would not start at boot", repaired=True)]


def test_a_driver_that_starts_at_boot_is_left_alone(windows_10: Hive) -> None:
    draft, findings = repair(windows_10, Bus.AHCI)
    assert (draft.changes, findings) == ((), [])


def test_ahci_on_windows_7_starts_msahci(windows_7: Hive) -> None:
    draft, findings = repair(windows_7, Bus.AHCI)
    assert [(change.key, change.value, change.after) for change in draft.changes] == [
        (rf"{CS}\services\msahci", "Start", (4, bytes(4)))
    ]
    assert findings[0].repaired


def test_nvme_on_windows_7_is_out_of_reach_and_says_why(windows_7: Hive) -> None:
    draft, findings = repair(windows_7, Bus.NVME)
    assert draft.changes == ()
    assert [(finding.level, finding.repaired) for finding in findings] == [("stop", False)]
    assert "AWS NVMe driver" in findings[0].way_out


@pytest.mark.parametrize("bus", [Bus.VIRTIO, Bus.VIRTIO_SCSI, Bus.XEN])
def test_a_bus_without_a_driver_is_a_finding_and_no_change(windows_10: Hive, bus: Bus) -> None:
    draft, findings = repair(windows_10, bus)
    assert draft.changes == ()
    assert findings[0].level == "stop"
    assert "install the" in findings[0].way_out


def test_virtio_on_windows_7_goes_into_the_critical_device_database(windows_7: Hive) -> None:
    draft, _ = repair(windows_7, Bus.VIRTIO, "viostor")
    for hardware in ("VEN_1AF4&DEV_1001&REV_00", "VEN_1AF4&DEV_1042&REV_01"):
        key = rf"{CS}\Control\CriticalDeviceDatabase\PCI#{hardware}"
        assert draft.text(key, "Service") == "viostor"
        assert draft.text(key, "ClassGUID") == "{4D36E97B-E325-11CE-BFC1-08002BE10318}"
    assert not draft.has_key("DriverDatabase")
    assert draft.dword(rf"{CS}\services\viostor", "Start") == 0
    assert draft.text(rf"{CS}\services\viostor", "ImagePath") == r"System32\drivers\viostor.sys"


def test_virtio_on_windows_10_goes_into_the_driver_database(windows_10: Hive) -> None:
    draft, _ = repair(windows_10, Bus.VIRTIO, "viostor")
    inf = "understudy_viostor.inf"
    label = draft.text(rf"DriverDatabase\DriverInfFiles\{inf}", "Active")
    package = rf"DriverDatabase\DriverPackages\{label}"
    for hardware in ("VEN_1AF4&DEV_1001&REV_00", "VEN_1AF4&DEV_1042&REV_01"):
        assert draft.value(rf"DriverDatabase\DeviceIds\PCI\{hardware}", inf).data == bytes.fromhex("01ff0000")
        configuration = draft.text(rf"{package}\Descriptors\PCI\{hardware}", "Configuration")
        assert draft.text(rf"{package}\Configurations\{configuration}", "Service") == "viostor"
    active = draft.text(r"DriverDatabase\DriverInfFiles\stornvme.inf", "Active")
    inbox = rf"DriverDatabase\DriverPackages\{active}"
    ours, windows_own = (draft.value(key, "Version") for key in (package, inbox))
    assert (ours.type, len(ours.data), ours.data[8:24]) == (3, len(windows_own.data), windows_own.data[8:24])
    assert not draft.has_key(rf"{CS}\Control\CriticalDeviceDatabase")


@pytest.mark.parametrize(("name", "bus"), [("windows_7", Bus.VIRTIO), ("windows_10", Bus.VIRTIO_SCSI)])
def test_an_injected_driver_is_written_and_found_ready_the_next_time(
    name: str, bus: Bus, request: pytest.FixtureRequest, hivex: None
) -> None:
    hive: Hive = request.getfixturevalue(name)
    draft, _ = repair(hive, bus, "viostor", "vioscsi")
    assert draft.changes
    again, findings = repair(draft.result(), bus, "viostor", "vioscsi")
    assert (again.changes, findings) == ((), [])


def test_virtio_that_its_installer_installed_keeps_its_own_package(windows_10: Hive, hivex: None) -> None:
    draft = HiveDraft("SYSTEM", windows_10)
    known = r"DriverDatabase\DeviceIds\PCI\VEN_1AF4&DEV_1001&SUBSYS_00021AF4"
    draft.set(known, "oem7.inf", 3, bytes.fromhex("01ff0000"), "")
    draft.set(known.replace("1001", "1042"), "oem7.inf", 3, bytes.fromhex("01ff0000"), "")
    draft.set_dword(rf"{CS}\Services\viostor", "Start", 0, "")
    before = len(draft.changes)
    assert drivers.repair(draft, Bus.VIRTIO, has_file("viostor")) == []
    assert len(draft.changes) == before


def test_a_driver_whose_file_is_gone_counts_as_absent(windows_10: Hive) -> None:
    draft = HiveDraft("SYSTEM", windows_10)
    findings = drivers.repair(draft, Bus.NVME, lambda _: False)
    assert (draft.changes, findings[0].repaired) == ((), False)


def test_both_control_sets_are_made_ready_where_the_next_boot_uses_another(hivex: None) -> None:
    values = {("Select", "Default"): (4, b"\2\0\0\0"), ("Select", "Current"): (4, b"\1\0\0\0")}
    values |= {(rf"ControlSet00{n}\Services\stornvme", "Start"): (4, b"\3\0\0\0") for n in (1, 2)}
    draft, _ = repair(Hive("SYSTEM", hive_with(values)), Bus.NVME)
    assert {change.key for change in draft.changes} == {rf"ControlSet00{n}\Services\stornvme" for n in (1, 2)}


def test_data_disks_come_online_where_the_policy_keeps_them_offline(hivex: None) -> None:
    values = {("Select", "Default"): (4, b"\1\0\0\0"), ("Select", "Current"): (4, b"\1\0\0\0")}
    values[rf"{CS}\Services\partmgr\Parameters", "SanPolicy"] = (4, b"\2\0\0\0")
    draft = HiveDraft("SYSTEM", Hive("SYSTEM", hive_with(values)))
    assert drivers.repair_data_disks(draft)[0].repaired
    assert draft.dword(rf"{CS}\Services\partmgr\Parameters", "SanPolicy") == 1
    assert drivers.repair_data_disks(draft) == []
