"""What the agent tells about its machine: hardware, system, disks, network, and what would stop it booting elsewhere.

Nothing here raises: what cannot be read is left out or empty.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import shutil
import socket
import struct
import subprocess
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agent.bootability import boot_findings
from agent.images import describe_image
from agent.protocol.errors import SourceError
from agent.readiness import boot_files, boots_on
from agent.volumes.blockdevices import NOT_DISKS, BlockDevice, read_block_devices, stacked_on
from agent.volumes.marks import marks
from agent.volumes.mounts import Mount, read_mounts
from agent.volumes.source import SourceVolume
from agent.volumes.topology import device_number, filesystems_on

_ROOT = Path("/")
_NAMESPACE = uuid.UUID("5e0c5bd4-6b0b-5ad1-9c53-0c9f8f2f6a11")
# What boards report whose maker never filled it in: shared by many machines, so it identifies none.
_PLACEHOLDERS = frozenset(
    {uuid.UUID(int=0), uuid.UUID(int=(1 << 128) - 1), uuid.UUID("03000200-0400-0500-0006-000700080009")}
)
_SIOCGIFADDR = 0x8915


def collect(protected: Sequence[str] = ()) -> dict[str, Any]:
    """The inventory, ready for JSON; `protected` are the paths to replicate, in boot order:

    `hostname, os, kernel, architecture, boot_mode` (uefi|bios), `cpus, memory_mib, machine_id`,
    `network`: [{name, mac, addresses: ["192.0.2.7/24"]}],
    `disks`: [{name: "/dev/sda", size_bytes, model, serial, marks: as agent.volumes.marks has them,
    partitions: [{name, size_bytes}], filesystems: [{device, mountpoint, fstype, read_only}]}],
    `boot_findings`: [{level: ok|warn|stop, what, way_out}], `boots_on`: [virtio, ...] as agent.readiness tells,
    `boot_files`: a hash that changes with what a boot reads. Of a server that boots from an image file, `os`,
    `boot_mode` and what is about booting are that image's, and what no image tells is null (see agent.images);
    `machine_id` and `disks` are of the machine that the agent runs on.
    """
    mode = boot_mode()
    findings = boot_findings(_ROOT, mode)
    return {
        "hostname": socket.gethostname(),
        "os": _system_name(),
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "boot_mode": mode,
        "cpus": os.cpu_count() or 1,
        "memory_mib": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20,
        "machine_id": machine_id(),
        "network": network(),
        "disks": disks(),
        "boot_findings": findings,
        "boots_on": boots_on(_ROOT, findings),
        "boot_files": boot_files(_ROOT),
        **describe_image(protected),
    }


def machine_id(root: Path = _ROOT) -> str:
    """A UUID in lower case that stays with the hardware: the firmware's, which a copy of the disk does not share.

    Where the firmware has none (or, not being root, it may not be read) one made from /etc/machine-id, else from the
    host name: those travel with the disk.
    """
    with contextlib.suppress(ValueError):
        found = uuid.UUID(_text(root / "sys/class/dmi/id/product_uuid"))
        if found not in _PLACEHOLDERS:
            return str(found)
    system_id = _text(root / "etc/machine-id")
    if system_id and system_id != "uninitialized":
        return str(uuid.uuid5(_NAMESPACE, system_id))
    return str(uuid.uuid5(_NAMESPACE, "host name " + socket.gethostname()))


def boot_mode(root: Path = _ROOT) -> str:
    """`uefi` or `bios`: how the running system was started."""
    return "uefi" if (root / "sys/firmware/efi").exists() else "bios"


def _system_name() -> str:
    with contextlib.suppress(OSError):
        release = platform.freedesktop_os_release()
        return release.get("PRETTY_NAME") or release["NAME"]
    return platform.system()


def disks() -> list[dict[str, Any]]:
    devices: list[BlockDevice] = []
    mounts: list[Mount] = []
    with contextlib.suppress(OSError):
        devices = read_block_devices()
        mounts = read_mounts()
    return [
        _disk(device, devices, mounts)
        for device in devices
        if device.parent is None and device.size_bytes and not device.name.startswith(NOT_DISKS)
    ]


def _disk(disk: BlockDevice, devices: list[BlockDevice], mounts: list[Mount]) -> dict[str, Any]:
    folder = _ROOT / "sys/class/block" / disk.name
    filesystems = filesystems_on(stacked_on([disk.name], devices), devices, mounts, device_number)
    return {
        "name": f"/dev/{disk.name}",
        "size_bytes": disk.size_bytes,
        "model": _text(folder / "device/model") or _text(folder / "device/vendor"),
        "serial": _text(folder / "serial") or _text(folder / "device/serial"),
        "marks": _marks(f"/dev/{disk.name}"),
        "partitions": [
            {"name": f"/dev/{device.name}", "size_bytes": device.size_bytes}
            for device in devices
            if device.parent == disk.name
        ],
        "filesystems": [
            {
                "device": filesystem.device,
                "mountpoint": filesystem.mountpoint,
                "fstype": filesystem.fstype,
                "read_only": filesystem.read_only,
            }
            for filesystem in filesystems
        ],
    }


def _marks(device: str) -> list[str]:
    with contextlib.suppress(SourceError), SourceVolume.open(device) as source:
        return marks(source.read_up_to)
    return []


def network() -> list[dict[str, Any]]:
    """Every interface but loopback; those without a hardware address (tunnels) have an empty `mac`."""
    names: list[str] = []
    with contextlib.suppress(OSError):
        names = sorted(entry.name for entry in (_ROOT / "sys/class/net").iterdir() if entry.is_dir())
    addresses = _addresses(names)
    return [
        {"name": name, "mac": _text(_ROOT / "sys/class/net" / name / "address"), "addresses": addresses.get(name, [])}
        for name in names
        if name != "lo"
    ]


def _addresses(names: list[str]) -> dict[str, list[str]]:
    """Addresses with prefix length by interface, from ip(8); without it the first IPv4 address of each, bare."""
    if shutil.which("ip"):
        with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError):
            listed = subprocess.run(["ip", "-j", "addr"], capture_output=True, check=True, timeout=10).stdout
            return {
                link["ifname"]: [f"{one['local']}/{one['prefixlen']}" for one in link["addr_info"] if "local" in one]
                for link in json.loads(listed)
                if "ifname" in link
            }
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for name in names:
            with contextlib.suppress(OSError):
                reply = fcntl.ioctl(control, _SIOCGIFADDR, struct.pack("256s", os.fsencode(name)[:15]))
                found[name] = [socket.inet_ntoa(reply[20:24])]
    return found


def _text(path: Path) -> str:
    """The file's text, stripped; empty when it cannot be read."""
    try:
        return path.read_text(errors="replace").strip().strip("\0")
    except OSError:
        return ""
