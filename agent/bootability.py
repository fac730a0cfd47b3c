"""What would stop this machine's disks from booting on other hardware, as far as a few files tell.

A replica meets other disk controllers, other network cards and other firmware. Each check reads below `root`, so that
a mounted replica can be checked as well as the running system. What cannot be read says nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

Finding = dict[str, str]

_KERNEL_NAME = re.compile(r"/dev/(sd[a-z]|hd[a-z]|vd[a-z]|xvd[a-z]|nvme\d|mmcblk\d)")
_FALLBACK_LOADERS = frozenset({"bootx64.efi", "bootaa64.efi"})


def boot_findings(root: Path, boot_mode: str) -> list[Finding]:
    """[{level, what, way_out}]: `stop` would not come up, `warn` may come up without something, `ok` was looked at.

    `boot_mode` is uefi or bios. Never raises."""
    return [
        *_root_device(root),
        *_filesystem_table(root),
        *_initramfs(root),
        *_console(root),
        *_network(root),
        *(_fallback_loader(root) if boot_mode == "uefi" else ()),
    ]


def _root_device(root: Path) -> Iterator[Finding]:
    for option in _read(root / "proc/cmdline").split():
        name, _, value = option.partition("=")
        if name not in ("root", "resume") or not value:
            continue
        if not _KERNEL_NAME.match(value):
            yield _finding("ok", f"the kernel command line finds {name} by {value}")
        elif name == "root":
            yield _finding(
                "stop",
                f"the kernel command line names the root disk {value}, which is called otherwise elsewhere",
                "use root=UUID=... (unset GRUB_DISABLE_LINUX_UUID, then update-grub)",
            )
        else:
            yield _finding(
                "warn",
                f"the kernel command line names the swap disk {value}: the boot waits for it",
                "use resume=UUID=..., or leave it out",
            )


def _filesystem_table(root: Path) -> Iterator[Finding]:
    lines = [line.split() for line in _read(root / "etc/fstab").splitlines() if not line.lstrip().startswith("#")]
    entries = [fields for fields in lines if len(fields) >= 3]
    named = [fields for fields in entries if _KERNEL_NAME.match(fields[0])]
    for device, mountpoint, fstype, *rest in named:
        options = rest[0].split(",") if rest else []
        harmless = fstype == "swap" or "nofail" in options or "noauto" in options
        yield _finding(
            "warn" if harmless else "stop",
            f"/etc/fstab names {device} for {'swap' if fstype == 'swap' else mountpoint}",
            f"use UUID=... instead (blkid {device})",
        )
    if entries and not named:
        yield _finding("ok", "/etc/fstab names no disk by its kernel name")


def _initramfs(root: Path) -> Iterator[Finding]:
    settings = [root / "etc/initramfs-tools/initramfs.conf", *_files(root / "etc/initramfs-tools/conf.d", "*")]
    modules = _last_setting(settings, "MODULES")
    if modules == "dep":
        yield _finding(
            "stop",
            "the initramfs holds only the drivers of this machine (MODULES=dep)",
            "MODULES=most in /etc/initramfs-tools/initramfs.conf, then update-initramfs -u -k all",
        )
    elif modules:
        yield _finding("ok", f"the initramfs holds drivers for other machines (MODULES={modules})")
    dracut = [
        *_files(root / "usr/lib/dracut/dracut.conf.d", "*.conf"),
        root / "etc/dracut.conf",
        *_files(root / "etc/dracut.conf.d", "*.conf"),
    ]
    drivers = " ".join(_read(path) for path in dracut)
    if _last_setting(dracut, "hostonly") == "yes" and "virtio_blk" not in drivers:
        yield _finding(
            "stop",
            "the initramfs holds only the drivers of this machine (dracut hostonly)",
            'add_drivers+=" virtio_pci virtio_blk virtio_scsi virtio_net nvme ena xen-blkfront " in '
            "/etc/dracut.conf.d/understudy.conf, then dracut --regenerate-all -f",
        )


def _console(root: Path) -> Iterator[Finding]:
    command_line = _read(root / "proc/cmdline")
    if "console=ttyS" in command_line or "console=ttyAMA" in command_line:
        yield _finding("ok", "there is a serial console to watch a boot by")
    elif command_line:
        yield _finding(
            "warn",
            "no serial console: a boot elsewhere cannot be watched by its text",
            "add console=tty0 console=ttyS0,115200 to GRUB_CMDLINE_LINUX, then update-grub",
        )


def _network(root: Path) -> Iterator[Finding]:
    """Network cards have other addresses and other names elsewhere; what is bound to these is not configured there."""
    bound = [name for pattern, binding in _NETWORK_FILES for name in _matching(root, pattern, binding)]
    for name in sorted(set(bound)):
        yield _finding(
            "warn",
            f"/{name} binds the network to this machine's card, by name or by hardware address",
            "match en* eth* instead, with DHCP",
        )


# (files, what in them binds the network to one card)
_NETWORK_FILES = (
    ("etc/network/interfaces", r"^\s*iface\s+(?!lo\b)\w+"),
    ("etc/network/interfaces.d/*", r"^\s*iface\s+(?!lo\b)\w+"),
    ("etc/netplan/*.yaml", r"^\s*(macaddress:|(en|eth|em|p\d)\w+:\s*$)"),
    ("etc/systemd/network/*.network", r"^\s*(MACAddress|PermanentMACAddress)=|^\s*Name=(?!lo\b)[^*?\s]+\s*$"),
    ("etc/systemd/network/*.link", r"^\s*(MACAddress|PermanentMACAddress)="),
    ("etc/sysconfig/network-scripts/ifcfg-*", r"^\s*(HWADDR|DEVICE)=(?!\"?lo\b)"),
    ("etc/NetworkManager/system-connections/*", r"^\s*(interface-name|mac-address)=(?!lo\b)"),
    ("etc/udev/rules.d/*persistent-net*.rules", r"^\s*[^#\s].*NAME="),
)


def _fallback_loader(root: Path) -> Iterator[Finding]:
    """The firmware's list of boot entries does not travel with the disk; every firmware tries EFI/BOOT."""
    mounted = [root / place for place in ("boot/efi", "efi", "boot") if _child(root / place, "efi")]
    for place in mounted:
        folder = _child(_child(place, "efi"), "boot")
        if any(entry.name.lower() in _FALLBACK_LOADERS for entry in _files(folder, "*")):
            yield _finding("ok", "the EFI partition has the loader that every firmware tries")
            return
    if mounted:
        yield _finding(
            "stop",
            "the EFI partition has no EFI/BOOT/BOOTX64.EFI: other firmware would find nothing to start",
            "grub-install --target=x86_64-efi --removable (Debian: dpkg-reconfigure grub-efi-amd64)",
        )


def _finding(level: str, what: str, way_out: str = "") -> Finding:
    return {"level": level, "what": what, "way_out": way_out}


def _matching(root: Path, pattern: str, binding: str) -> Iterator[str]:
    folder, _, name = pattern.rpartition("/")
    for path in _files(root / folder, name):
        if re.search(binding, _read(path), re.MULTILINE):
            yield str(path.relative_to(root))


def _last_setting(paths: list[Path], name: str) -> str:
    """The value of the last NAME=value line of shell-like files; empty when there is none."""
    value = ""
    for path in paths:
        for found in re.finditer(rf"^\s*{name}=[\"']?\s*([\w-]*)", _read(path), re.MULTILINE):
            value = found[1]
    return value


def _child(folder: Path | None, name: str) -> Path | None:
    """The entry of that name in upper or lower case: FAT keeps either."""
    return next((entry for entry in _files(folder, "*") if entry.name.lower() == name), None)


def _files(folder: Path | None, pattern: str) -> list[Path]:
    try:
        return sorted(folder.glob(pattern)) if folder is not None else []
    except OSError:
        return []


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
