"""A virtual machine's description for vSphere (OVF 1.1), and the manifest that ovftool checks its files by. Pure.

The hardware is what needs the least: AHCI disks and an e1000e card, whose drivers Windows and Linux bring along.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

_DMTF = "http://schemas.dmtf.org"
_RASD = f"{_DMTF}/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"
_VSSD = f"{_DMTF}/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData"
_STREAM_OPTIMIZED = "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"
_HARDWARE = "vmx-13"
"""ESXi 6.5 and later."""
NETWORK = "VM Network"
# CIM's number for the kind of system, VMware's word for it
_LINUX, _WINDOWS = (101, "other3xLinux64Guest"), (1, "windows9Server64Guest")
_CPU, _MEMORY, _CARD, _DISK, _SATA = 3, 4, 10, 17, 20
_CONTROLLER_ID = 3
MAX_DISKS = 30
"""What one AHCI controller has ports for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What the server is to be made of."""

    cpus: int
    memory_mib: int
    uefi: bool
    windows: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskFile:
    """A stream-optimized VMDK of `file_bytes` that holds a disk of `size_bytes`."""

    name: str
    file_bytes: int
    size_bytes: int


def descriptor(name: str, hardware: Hardware, disks: Sequence[DiskFile]) -> str:
    """The OVF document of a machine with these disks, in boot order."""
    number, guest = _WINDOWS if hardware.windows else _LINUX
    files = "".join(
        f'\n    <File ovf:href={quoteattr(disk.name)} ovf:id="file{at}" ovf:size="{disk.file_bytes}"/>'
        for at, disk in enumerate(disks, 1)
    )
    listed = "".join(
        f'\n    <Disk ovf:capacity="{disk.size_bytes}" ovf:capacityAllocationUnits="byte" ovf:diskId="disk{at}"'
        f' ovf:fileRef="file{at}" ovf:format="{_STREAM_OPTIMIZED}"/>'
        for at, disk in enumerate(disks, 1)
    )
    items = "".join(_item(**item) for item in _items(hardware, len(disks)))
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<Envelope xmlns="{_DMTF}/ovf/envelope/1" xmlns:ovf="{_DMTF}/ovf/envelope/1" xmlns:rasd="{_RASD}"
    xmlns:vssd="{_VSSD}" xmlns:vmw="http://www.vmware.com/schema/ovf">
  <References>{files}
  </References>
  <DiskSection>
    <Info>The server's disks, in boot order</Info>{listed}
  </DiskSection>
  <NetworkSection>
    <Info>The networks that it is connected to</Info>
    <Network ovf:name="{NETWORK}">
      <Description>Where its clients reach it</Description>
    </Network>
  </NetworkSection>
  <VirtualSystem ovf:id={quoteattr(name)}>
    <Info>A server, as it was when its recovery point was taken</Info>
    <Name>{escape(name)}</Name>
    <OperatingSystemSection ovf:id="{number}" vmw:osType="{guest}">
      <Info>What it runs</Info>
    </OperatingSystemSection>
    <VirtualHardwareSection>
      <Info>What it needs</Info>
      <System>
        <vssd:ElementName>Virtual Hardware Family</vssd:ElementName>
        <vssd:InstanceID>0</vssd:InstanceID>
        <vssd:VirtualSystemIdentifier>{escape(name)}</vssd:VirtualSystemIdentifier>
        <vssd:VirtualSystemType>{_HARDWARE}</vssd:VirtualSystemType>
      </System>{items}
      <vmw:Config ovf:required="false" vmw:key="firmware" vmw:value="{"efi" if hardware.uefi else "bios"}"/>
      <vmw:Config ovf:required="false" vmw:key="bootOptions.efiSecureBootEnabled" vmw:value="false"/>
    </VirtualHardwareSection>
  </VirtualSystem>
</Envelope>
"""


def manifest(sha256: Mapping[str, str]) -> str:
    """Of files by their names; the descriptor comes first."""
    return "".join(f"SHA256({name})= {digest}\n" for name, digest in sha256.items())


def _items(hardware: Hardware, disks: int) -> list[dict[str, object]]:
    first_disk = _CONTROLLER_ID + 1
    return [
        {
            "AllocationUnits": "hertz * 10^6",
            "ElementName": f"{hardware.cpus} virtual CPU",
            "InstanceID": 1,
            "ResourceType": _CPU,
            "VirtualQuantity": hardware.cpus,
        },
        {
            "AllocationUnits": "byte * 2^20",
            "ElementName": f"{hardware.memory_mib} MiB of memory",
            "InstanceID": 2,
            "ResourceType": _MEMORY,
            "VirtualQuantity": hardware.memory_mib,
        },
        {
            "Address": 0,
            "ElementName": "SATA Controller 0",
            "InstanceID": _CONTROLLER_ID,
            "ResourceSubType": "vmware.sata.ahci",
            "ResourceType": _SATA,
        },
        *(
            {
                "AddressOnParent": at,
                "ElementName": f"Hard Disk {at + 1}",
                "HostResource": f"ovf:/disk/disk{at + 1}",
                "InstanceID": first_disk + at,
                "Parent": _CONTROLLER_ID,
                "ResourceType": _DISK,
            }
            for at in range(disks)
        ),
        {
            "AutomaticAllocation": "true",
            "Connection": NETWORK,
            "ElementName": "Network adapter 1",
            "InstanceID": first_disk + disks,
            "ResourceSubType": "E1000e",
            "ResourceType": _CARD,
        },
    ]


def _item(**fields: object) -> str:
    """The schema wants the fields in the order of their names."""
    lines = "".join(
        f"\n        <rasd:{name}>{escape(str(value))}</rasd:{name}>" for name, value in sorted(fields.items())
    )
    return f"\n      <Item>{lines}\n      </Item>"
