"""The disks and partitions of this machine as candidates for a protected volume: where each is, and what tells it from
others."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from agent.protocol.errors import SourceError
from agent.volumes.blockdevices import NOT_DISKS, SYS, BlockDevice, read_block_devices
from agent.volumes.marks import marks
from agent.volumes.source import SourceVolume
from agent.volumes.topology import mounted_filesystems

# What a serial number lies in below a disk's folder of sysfs: virtio's, NVMe's own, then the worldwide name of either.
_SERIALS = ("serial", "device/serial", "wwid", "device/wwid")


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A disk or partition. `device` is the kernel's name for it now; `marks` as agent.volumes.marks has them, `serial`
    as `serial_of`, `attachment` as SourceVolume. `holds_state`: this agent's state folder lies on it."""

    device: str
    size_bytes: int
    marks: list[str]
    serial: str
    attachment: str | None
    holds_state: bool = False


def candidates(state_folder: Path) -> list[Candidate]:
    """All that can be read; opens each of them. Raises SourceError where the system does not tell what there is."""
    try:
        devices = {device.name: device for device in read_block_devices()}
    except OSError as error:
        raise SourceError(f"the disks of this machine cannot be listed: {error}", "run as root, with /sys") from error
    found = []
    for device in devices.values():
        if device.size_bytes and not device.name.startswith(NOT_DISKS) and not _is_made_of_disks(device, devices):
            with contextlib.suppress(SourceError), SourceVolume.open(_node(device.name)) as source:
                found.append(candidate(source, state_folder))
    return found


def candidate(source: SourceVolume, state_folder: Path) -> Candidate:
    """An open block device as a candidate."""
    return Candidate(
        device=_kernel_name(source),
        size_bytes=source.size_bytes,
        marks=marks(source.read_up_to),
        serial=serial_of(*source.number),
        attachment=source.attachment,
        holds_state=_holds(source.path, state_folder),
    )


def serial_of(major: int, minor: int, sys: Path = SYS) -> str:
    """The serial number of the disk with this number; a partition has its disk's with `-part1`. Empty: it has none."""
    folder, part = (sys / f"dev/block/{major}:{minor}").resolve(), ""
    if (folder / "partition").exists():
        folder, part = folder.parent, f"-part{_text(folder / 'partition')}"
    found = next(filter(None, (_text(folder / name) for name in _SERIALS)), "")
    return found and found + part


def _kernel_name(source: SourceVolume) -> str:
    """The same for all nodes and links that lead to a device."""
    major, minor = source.number
    node = _node((SYS / f"dev/block/{major}:{minor}").resolve().name)
    return node if Path(node).exists() else os.path.realpath(source.path)


def _node(name: str) -> str:
    """Of a name as sysfs has it, which cannot hold the slash of such as cciss/c0d0."""
    return f"/dev/{name.replace('!', '/')}"


def _is_made_of_disks(device: BlockDevice, devices: dict[str, BlockDevice]) -> bool:
    """A partition of what is no disk, such as one of a RAID."""
    return device.parent is not None and device.parent.startswith(NOT_DISKS)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip().strip("\0")
    except OSError:
        return ""


def _holds(device: str, folder: Path) -> bool:
    try:
        place = os.stat(folder).st_dev
        return any(os.stat(found.mountpoint).st_dev == place for found in mounted_filesystems(device))
    except (OSError, SourceError):
        return False
