"""The hardware that a replica is to boot on."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Bus(enum.StrEnum):
    """How its disks are attached."""

    VIRTIO = "virtio"
    VIRTIO_SCSI = "virtio-scsi"
    NVME = "nvme"
    AHCI = "ahci"
    XEN = "xen"


class Firmware(enum.StrEnum):
    BIOS = "bios"
    UEFI = "uefi"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """`serial_console`: somebody, or a gate, watches the boot there."""

    bus: Bus
    firmware: Firmware
    serial_console: bool = False

    def __str__(self) -> str:
        return f"{self.bus}, {self.firmware.upper()}{', serial console' if self.serial_console else ''}"
