"""What lives on a disk: its mounted filesystems, and why it may not be overwritten.

`filesystems_on` and `reason_in_use` are pure, on what `blockdevices` and `mounts` parsed; the public functions read.
Raid and LVM over several disks count as living on each of them: freezing one stops the whole.
Not seen: ZFS and bcachefs pools, swap files' contents, and programs that write to the disk without a filesystem.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from agent.protocol.errors import NotADisk, SourceError
from agent.volumes.blockdevices import BlockDevice, names_at, read_block_devices, stacked_on
from agent.volumes.mounts import Mount, read_mounts, read_swaps

SYSTEM_MOUNTPOINTS = frozenset({"/", "/boot", "/boot/efi", "/efi", "/usr", "/var"})


@dataclass(frozen=True, slots=True)
class MountedFilesystem:
    """A mounted superblock. `device` is a /dev path; `mount_id` tells whether `mountpoint` really leads to it."""

    device: str
    mountpoint: str
    fstype: str
    read_only: bool
    mount_id: int = -1


def mounted_filesystems(*paths: str) -> list[MountedFilesystem]:
    """The filesystems on these disks or image files, one entry a superblock, in the order they should be frozen.

    What lives on an image file comes before the filesystem that holds that file, else deepest mountpoint first: root
    is last. Raises NotADisk for a path that does not exist, SourceError when the system does not tell.
    """
    try:
        devices, mounts = read_block_devices(), read_mounts()
        names = {name for path in paths for name in names_at(path, devices)}
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotADisk(f"{error.filename}: {error.strerror}") from error
    except OSError as error:
        raise SourceError(
            f"what is mounted cannot be found out: {error}", "run as root, with /proc and /sys"
        ) from error
    return filesystems_on(stacked_on(names, devices), devices, mounts, device_number)


def in_use(path: str) -> str | None:
    """Why this disk or image file may not be overwritten, in words for the operator; None when it is free.

    Raises like mounted_filesystems.
    """
    mountpoint = _system_mountpoint(path)
    if mountpoint is not None:
        return f"it is the running system's own disk (it holds {mountpoint})"
    try:
        devices, mounts = read_block_devices(), read_mounts()
        swaps = {device_number(swap) for swap in read_swaps()}
        names = names_at(path, devices)
    except OSError as error:
        raise SourceError(f"whether {path} is in use cannot be found out: {error}") from error
    reason = reason_in_use(names, devices, mounts, swaps, device_number)
    if reason is None and names and Path(path).is_file():
        return f"it is attached as /dev/{min(names)}"
    return reason


def filesystems_on(
    names: set[str], devices: Iterable[BlockDevice], mounts: Iterable[Mount], number_of: Callable[[str], str | None]
) -> list[MountedFilesystem]:
    """Which of `mounts` live on the devices `names`; `number_of` gives the "major:minor" of a /dev path.

    btrfs reports a number of its own, without a device behind it: there the mount's source decides.
    """
    devices = list(devices)
    by_number = {device.number: device for device in devices}
    on_images = stacked_on((device.name for device in devices if device.backing_file), devices)
    found: dict[str, MountedFilesystem] = {}
    for mount in mounts:
        number = number_of(mount.source) if mount.number.startswith("0:") else mount.number
        device = by_number.get(number or "")
        if device is None or device.name not in names:
            continue
        filesystem = MountedFilesystem(
            f"/dev/{device.name}", mount.mountpoint, mount.fstype, mount.read_only, mount.mount_id
        )
        # Of several mounts of one superblock the shortest path: a container's bind mounts come and go.
        known = found.get(mount.number)
        if known is None or len(mount.mountpoint) < len(known.mountpoint):
            found[mount.number] = filesystem

    def order(filesystem: MountedFilesystem) -> tuple[bool, int, str]:
        on_image = filesystem.device.removeprefix("/dev/") in on_images
        return (not on_image, -_depth(filesystem.mountpoint), filesystem.mountpoint)

    return sorted(found.values(), key=order)


def reason_in_use(
    names: set[str],
    devices: Iterable[BlockDevice],
    mounts: Iterable[Mount],
    swaps: set[str | None],
    number_of: Callable[[str], str | None],
) -> str | None:
    """Why the devices `names` may not be overwritten: mounted, swapped to, or used by what is stacked on them."""
    devices = list(devices)
    everything = stacked_on(names, devices)
    for filesystem in filesystems_on(everything, devices, mounts, number_of):
        return f"{filesystem.device} is mounted at {filesystem.mountpoint}"
    for device in devices:
        if device.name in everything and device.number in swaps:
            return f"/dev/{device.name} is used as swap"
    for device in devices:
        if device.name in everything and device.holders:
            return f"/dev/{device.name} is held by {', '.join(device.holders)}"
        if device.name in everything - names and device.backing_file:
            return f"{device.backing_file} is attached as /dev/{device.name}"
    return None


def device_number(path: str) -> str | None:
    """Major and minor of the block device at `path`; None when there is none, as for `tmpfs` or `server:/export`."""
    if not path.startswith("/"):
        return None
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}" if stat.S_ISBLK(found.st_mode) else None


def _system_mountpoint(path: str) -> str | None:
    for filesystem in mounted_filesystems(path):
        if filesystem.mountpoint in SYSTEM_MOUNTPOINTS:
            return filesystem.mountpoint
    return None


def _depth(mountpoint: str) -> int:
    return len([part for part in mountpoint.split("/") if part])
