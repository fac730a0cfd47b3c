"""Boot-start drivers: what Windows must load for its disk, before it can read anything from it.

A driver is ready for a first boot on its hardware when its service starts at boot (Start 0, no StartOverride that says
otherwise), its file is there, and a database tells Windows which hardware it is for: CriticalDeviceDatabase up to
Windows 7, DriverDatabase from 8 on. Windows brings both for its own drivers; for virtio's we write what their
installation would have written, as far as a boot needs it.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from recovery.repair.record import Finding
from recovery.repair.target import Bus
from recovery.repair.windows.hivedraft import BINARY, EXPAND_SZ, MULTI_SZ, HiveDraft

_SCSI_ADAPTER = uuid.UUID("4d36e97b-e325-11ce-bfc1-08002be10318")
_MATCHED = bytes.fromhex("01ff0000")
_KERNEL_DRIVER, _BOOT, _ERROR_NORMAL = 1, 0, 1
_DATABASE = "DriverDatabase"


@dataclass(frozen=True, slots=True)
class Driver:
    """`service` is also its file's name. `hardware`: PCI ids to add to the databases; empty for Windows' own drivers.
    `also`: services that it needs to start at boot."""

    service: str
    hardware: tuple[str, ...] = ()
    also: tuple[str, ...] = ()


DRIVERS: Mapping[Bus, tuple[Driver, ...]] = {
    Bus.NVME: (Driver("stornvme"), Driver("AWSNVMe")),
    Bus.AHCI: (Driver("storahci"), Driver("msahci")),
    Bus.VIRTIO: (Driver("viostor", ("VEN_1AF4&DEV_1001&REV_00", "VEN_1AF4&DEV_1042&REV_01")),),
    Bus.VIRTIO_SCSI: (Driver("vioscsi", ("VEN_1AF4&DEV_1004&REV_00", "VEN_1AF4&DEV_1048&REV_01")),),
    Bus.XEN: (Driver("xenvbd", also=("xenbus",)),),
}
"""For each bus, the drivers that do, the preferred one first."""

_WAYS_OUT: Mapping[Bus, str] = {
    Bus.NVME: "Windows 8.1, 2012 R2 and later bring one; on older ones install the AWS NVMe driver before the next "
    "point, or boot on AHCI",
    Bus.AHCI: "boot on another bus",
    Bus.VIRTIO: "put viostor.sys of virtio-win for its Windows into DATA/drivers, or install the driver there",
    Bus.VIRTIO_SCSI: "put vioscsi.sys of virtio-win for its Windows into DATA/drivers, or install the driver there",
    Bus.XEN: "install the AWS PV drivers on the server before the next point, or boot on NVMe",
}


def control_sets(draft: HiveDraft) -> list[str]:
    """The control set that the next boot uses, and the one that the last boot used; the same, nearly always."""
    numbers = (draft.dword("Select", name) for name in ("Default", "Current"))
    names = dict.fromkeys(f"ControlSet{number:03}" for number in numbers if number)
    return [name for name in names if draft.has_key(name)]


def repair(draft: HiveDraft, bus: Bus, file_exists: Callable[[str], bool]) -> list[Finding]:
    """Draft what makes one driver for this bus ready. Ready already: no findings, no changes.

    `file_exists` is asked for driver files by their names below the Windows folder ("System32/drivers/viostor.sys")."""
    findings: list[Finding] = []
    for control_set in control_sets(draft):
        for driver in DRIVERS[bus]:
            if _is_there(draft, control_set, driver, file_exists):
                findings += _make_ready(draft, control_set, driver)
                break
        else:
            what = f"no driver for {bus} disks is installed ({' or '.join(item.service for item in DRIVERS[bus])})"
            findings.append(Finding("stop", what, _WAYS_OUT[bus]))
    return list(dict.fromkeys(findings))


def repair_data_disks(draft: HiveDraft) -> list[Finding]:
    """Let data disks come online by themselves: to Windows they are new ones, and some editions leave those offline."""
    findings = []
    for control_set in control_sets(draft):
        key = rf"{control_set}\Services\partmgr\Parameters"
        if draft.dword(key, "SanPolicy") != 1:
            what = "Windows would leave its data disks offline, as it finds them on other hardware"
            draft.set_dword(key, "SanPolicy", 1, "data disks come online by themselves")
            findings.append(Finding("warn", what, "diskpart: san policy=OnlineAll", repaired=True))
    return list(dict.fromkeys(findings))


def _is_there(draft: HiveDraft, control_set: str, driver: Driver, file_exists: Callable[[str], bool]) -> bool:
    if not file_exists(_file(draft, control_set, driver.service)):
        return False
    services = (driver.service, *driver.also)
    return bool(driver.hardware) or all(draft.has_key(_service(control_set, name)) for name in services)


def _file(draft: HiveDraft, control_set: str, service: str) -> str:
    r"""From the service's ImagePath (`\SystemRoot\System32\drivers\x.sys`, `system32\DRIVERS\x.sys`)."""
    image = draft.text(_service(control_set, service), "ImagePath").replace("\\", "/")
    for prefix in ("/systemroot/", "%systemroot%/"):
        if image.lower().startswith(prefix):
            image = image[len(prefix) :]
    return image or f"System32/drivers/{service}.sys"


def _service(control_set: str, name: str) -> str:
    return rf"{control_set}\Services\{name}"


def _make_ready(draft: HiveDraft, control_set: str, driver: Driver) -> list[Finding]:
    before = len(draft.changes)
    for name in (driver.service, *driver.also):
        key = _service(control_set, name)
        if not draft.has_key(key):
            why = f"{name} is there and not installed"
            draft.set_dword(key, "Type", _KERNEL_DRIVER, why)
            draft.set_dword(key, "ErrorControl", _ERROR_NORMAL, why)
            draft.set_text(key, "Group", "SCSI miniport", why)
            draft.set_text(key, "ImagePath", rf"System32\drivers\{name}.sys", why, EXPAND_SZ)
            # of its inf: a StorPort driver, of a device on the PCI bus (5)
            draft.set_dword(rf"{key}\Parameters", "BusType", 1, why)
            draft.set_dword(rf"{key}\Parameters\PnpInterface", "5", 1, why)
        draft.set_dword(key, "Start", _BOOT, f"{name} starts at boot")
        override = rf"{key}\StartOverride"
        for value in draft.values(override):
            # Kept, with the key: that has rights of its own, which an undo could not bring back.
            draft.set_dword(override, value.name, _BOOT, f"nothing keeps {name} from starting at boot")
    if driver.hardware:
        why = f"Windows knows {driver.service} for the disks it will find"
        if draft.has_key(_DATABASE):
            _add_to_driver_database(draft, driver, why)
        else:
            _add_to_critical_devices(draft, control_set, driver, why)
    if len(draft.changes) == before:
        return []
    return [Finding("stop", f"the disk driver {driver.service} would not start at boot", repaired=True)]


def _add_to_critical_devices(draft: HiveDraft, control_set: str, driver: Driver, why: str) -> None:
    for hardware in driver.hardware:
        key = rf"{control_set}\Control\CriticalDeviceDatabase\PCI#{hardware}"
        if draft.text(key, "Service").lower() != driver.service.lower():
            draft.set_text(key, "Service", driver.service, why)
            draft.set_text(key, "ClassGUID", f"{{{_SCSI_ADAPTER}}}".upper(), why)


def _add_to_driver_database(draft: HiveDraft, driver: Driver, why: str) -> None:
    """A package of our own, as small as a boot needs it; where an installed one knows the hardware, nothing."""
    missing = [hardware for hardware in driver.hardware if not _is_known(draft, hardware)]
    if not missing:
        return
    inf = f"understudy_{driver.service}.inf"
    label, configuration = f"{inf}_amd64_0000000000000000", f"{driver.service}_conf"
    key = rf"{_DATABASE}\DriverInfFiles\{inf}"
    draft.set_text(key, "", label, why, MULTI_SZ)
    draft.set_text(key, "Active", label, why)
    draft.set_text(key, "Configurations", configuration, why, MULTI_SZ)
    package = rf"{_DATABASE}\DriverPackages\{label}"
    # signer and architecture (9, amd64), class, date, version; the last two 0
    version = struct.pack("<4BI16s24x", 0, 0xFF, 9, 0, 0, _SCSI_ADAPTER.bytes_le)
    draft.set(package, "Version", BINARY, version, why)
    draft.set_dword(rf"{package}\Configurations\{configuration}", "ConfigFlags", 0, why)
    draft.set_text(rf"{package}\Configurations\{configuration}", "Service", driver.service, why)
    for hardware in missing:
        draft.set(rf"{_DATABASE}\DeviceIds\PCI\{hardware}", inf, BINARY, _MATCHED, why)
        draft.set_text(rf"{package}\Descriptors\PCI\{hardware}", "Configuration", configuration, why)


def _is_known(draft: HiveDraft, hardware: str) -> bool:
    """Also under a less precise id, without the revision."""
    devices = rf"{_DATABASE}\DeviceIds\PCI"
    names = {name.upper() for name in draft.subkeys(devices)}
    wanted = hardware.rpartition("&REV_")[0]
    return any(name.startswith(wanted) and draft.values(rf"{devices}\{name}") for name in names)
