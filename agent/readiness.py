"""On which kinds of disk controller this machine would boot as it is: what is certain, and nothing else.

A recovery site that has such a controller need not look into the replica before it boots it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from agent.bootability import Finding
from agent.volumes.blockdevices import NOT_DISKS

_BUSES = {"vd": "virtio", "nvme": "nvme"}
_ANY_MACHINE = frozenset({"virtio", "nvme", "ahci"})
_BOOT_FILES = (
    "boot/vmlinuz*",
    "boot/initrd*",
    "boot/initramfs*",
    "boot/grub*/grub.cfg",
    "boot/loader/entries/*",
    "boot/efi/EFI/BOOT/*",
    "etc/fstab",
    "etc/crypttab",
    "etc/network/interfaces",
    "etc/network/interfaces.d/*",
    "etc/netplan/*",
    "etc/systemd/network/*",
    "etc/udev/rules.d/*",
    "etc/sysconfig/network-scripts/ifcfg-*",
    "etc/NetworkManager/system-connections/*",
)


def boots_on(root: Path, findings: list[Finding]) -> list[str]:
    """virtio, nvme, ahci: those whose driver the boot has for certain, provided nothing else of what was found (see
    agent.bootability) stands in its way. Never raises."""
    in_the_way = [found for found in findings if found["level"] != "ok" and not found["what"].startswith(_HANDLED_HERE)]
    finds_its_root = any(
        found["level"] == "ok" and found["what"].startswith("the kernel command line finds root") for found in findings
    )
    if in_the_way or not finds_its_root:
        return []
    buses = {_bus_of(name) for name in _disks(root)}
    certain = {bus for bus in buses if bus is not None} if len(buses) == 1 else set()
    return sorted(certain | (_ANY_MACHINE if _made_for_any_machine(root, findings) else set()))


# Drivers are looked at below, and without a serial console a system boots unseen.
_HANDLED_HERE = ("the initramfs holds only the drivers of this machine", "no serial console")


def boot_files(root: Path) -> str:
    """Names, sizes and times of all that a boot reads before the system is up, as one hash: it changes with any of
    them. Never raises."""
    digest = hashlib.sha256()
    for pattern in _BOOT_FILES:
        for path in _glob(root, pattern):
            try:
                status = path.stat()
            except OSError:
                continue
            digest.update(f"{path.relative_to(root)}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]


def _bus_of(name: str) -> str | None:
    return next((bus for prefix, bus in _BUSES.items() if name.startswith(prefix)), None)


def _disks(root: Path) -> list[str]:
    try:
        return [path.name for path in (root / "sys/block").iterdir() if not path.name.startswith(NOT_DISKS)]
    except OSError:
        return []


def _made_for_any_machine(root: Path, findings: list[Finding]) -> bool:
    """MODULES=most counts only for archives that were made since it was set."""
    if not any(found["what"].endswith("(MODULES=most)") for found in findings):
        return False
    settings = [
        root / "etc/initramfs-tools/initramfs.conf",
        *_glob(root, "etc/initramfs-tools/conf.d/*"),
    ]
    archives = _glob(root, "boot/initrd*")
    try:
        set_at = max(path.stat().st_mtime for path in settings if path.exists())
        return bool(archives) and all(path.stat().st_mtime >= set_at for path in archives)
    except (OSError, ValueError):
        return False


def _glob(root: Path, pattern: str) -> list[Path]:
    try:
        return sorted(root.glob(pattern))
    except OSError:
        return []
