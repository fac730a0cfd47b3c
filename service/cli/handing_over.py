"""What to do with an export: the commands that bring it up on another hypervisor, ready to be copied. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from service.cli.ovf import Hardware

_READY = (
    "it is as the server was: where it does not start, it lacks drivers for the new hardware, or names disks or cards"
    " as they were (docs/exporting.md)"
)


def ways_on(image_format: str, server: str, hardware: Hardware, files: Sequence[Path], volumes: int) -> list[str]:
    """Lines for people; what is in capitals they put in. `files`: what was made, the first being what people name."""
    told = _TOLD.get(image_format)
    if told is None:
        return []
    name = re.sub(r"[^A-Za-z0-9-]", "-", server)
    lines = told(name, hardware, files)
    if image_format != "ovf" and volumes > 1:
        lines.append(f"{server} has {volumes} volumes, and this is one of them: the others with --volume N")
    return [*(f"  {line}" for line in lines), _READY]


def _ovf(name: str, hardware: Hardware, files: Sequence[Path]) -> list[str]:
    made = shlex.quote(str(files[0]))
    disks = ", ".join(path.name for path in files[2:])
    return [
        "onto vSphere or ESXi 6.5 and later, by either:",
        f"ovftool --name={name} --datastore=DATASTORE --network=NETWORK {made} vi://USER@HOST/",
        f"vSphere Client: Deploy OVF Template, Local files: {files[0].name}, {files[1].name}, {disks} together",
        f"it gets {_size(hardware)}, {_firmware(hardware)}, AHCI disks and an e1000e card; another controller or card"
        " than these is chosen in its settings, before it is started",
    ]


def _vmdk(name: str, hardware: Hardware, files: Sequence[Path]) -> list[str]:
    made = files[0].name
    return [
        "a whole virtual machine for vSphere is made by: --format ovf; a disk alone, copied into an ESXi's datastore:",
        f"vmkfstools -i {shlex.quote(made)} -d thin {name}.vmdk",
        f"then a new virtual machine with {_firmware(hardware)} and {_size(hardware)}, and this as an existing disk",
    ]


def _vhdx(name: str, hardware: Hardware, files: Sequence[Path]) -> list[str]:
    path = f"C:\\VMS\\{files[0].name}"
    generation = 2 if hardware.uefi else 1
    lines = [
        f"copy it to the Hyper-V host, as {path}; there, in PowerShell:",
        f"New-VM -Name {name} -Generation {generation} -MemoryStartupBytes {hardware.memory_mib}MB"
        f" -VHDPath '{path}' -SwitchName 'SWITCH'",
        f"Set-VMProcessor -VMName {name} -Count {hardware.cpus}",
    ]
    if hardware.uefi:
        lines.append(f"Set-VMFirmware -VMName {name} -EnableSecureBoot Off")
    return [
        *lines,
        f"for each further volume: Add-VMHardDiskDrive -VMName {name} -Path 'C:\\VMS\\FILE'",
        f"Start-VM -Name {name}",
        f"if it says that the file must not be sparse: fsutil sparse setflag '{path}' 0",
    ]


def _vhd(name: str, hardware: Hardware, files: Sequence[Path]) -> list[str]:
    made, system = shlex.quote(str(files[0])), "Windows" if hardware.windows else "Linux"
    url = f"https://ACCOUNT.blob.core.windows.net/CONTAINER/{name}.vhd"
    return [
        "onto Azure (as a fixed VHD, whose zeros need not travel); a Hyper-V takes it as it takes a VHDX:",
        f"azcopy copy {made} '{url}?SAS' --blob-type PageBlob",
        f"az disk create -g GROUP -n {name} --source {url} --os-type {system}"
        f" --hyper-v-generation {'V2' if hardware.uefi else 'V1'}",
        f"az vm create -g GROUP -n {name} --attach-os-disk {name} --os-type {system}",
    ]


def _firmware(hardware: Hardware) -> str:
    return "EFI firmware, Secure Boot off" if hardware.uefi else "BIOS firmware"


def _size(hardware: Hardware) -> str:
    return f"{hardware.cpus} CPU{'' if hardware.cpus == 1 else 's'} and {hardware.memory_mib} MiB"


_TOLD: dict[str, Callable[[str, Hardware, Sequence[Path]], list[str]]] = {
    "ovf": _ovf,
    "vmdk": _vmdk,
    "vhdx": _vhdx,
    "vhd": _vhd,
}
