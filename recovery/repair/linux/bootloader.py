"""The boot loader's configuration: which files hold kernel options, the serial console, and UEFI's way in."""

from __future__ import annotations

import re
from collections.abc import Iterator

from recovery.repair.draft import Draft
from recovery.repair.linux.system import System
from recovery.repair.record import Finding
from recovery.repair.target import Firmware, Target

DEFAULTS = "/etc/default/grub"
_CONFIGURATIONS = (
    "/boot/grub/grub.cfg",
    "/boot/grub2/grub.cfg",
    "/boot/grub*/custom.cfg",
    "/boot/grub*/grubenv",
    "/boot/loader/entries/*.conf",
    "/boot/grub/menu.lst",
    "/boot/*linux/*.c*f*g",
    "/boot/extlinux/extlinux.conf",
    DEFAULTS,
    "/etc/kernel/cmdline",
)
_ON_ESP = ("esp:/EFI/*/grub.cfg", "esp:/EFI/*/grubenv", "esp:/loader/entries/*.conf")
_ENVIRONMENT_BYTES = 1024  # GRUB takes a grubenv of no other size
_CONSOLE = "console=tty0 console=ttyS0,115200"
_KERNEL_LINE = re.compile(r"^(\s*(?:linux(?:16|efi)?|kernel|options|append|APPEND)[ \t]+\S.*?)[ \t]*$", re.MULTILINE)


def configurations(draft: Draft) -> list[str]:
    return list(dict.fromkeys(draft.glob(*_CONFIGURATIONS, *_ON_ESP)))


def write(draft: Draft, path: str, text: str, why: str) -> None:
    if path.endswith("/grubenv"):
        text = text.rstrip("#").ljust(_ENVIRONMENT_BYTES, "#")
    draft.write_text(path, text, why)


def repair_console(draft: Draft, target: Target) -> Iterator[Finding]:
    """Drafts a serial console where the target wants one and the kernel has none."""
    if not target.serial_console:
        return
    paths = [path for path in configurations(draft) if not path.endswith("/grubenv")]
    texts = {path: draft.text(path) for path in paths}
    environment = "".join(draft.text(path) for path in configurations(draft) if path.endswith("/grubenv"))
    if not texts or any("console=ttyS" in text for text in (*texts.values(), environment)):
        return
    why = "a boot elsewhere is watched by its serial console"
    for path, text in texts.items():
        if path == DEFAULTS:
            mended = re.sub(r'^(GRUB_CMDLINE_LINUX=")(.*")', rf"\1{_CONSOLE} \2", text, flags=re.MULTILINE)
        elif path == "/etc/kernel/cmdline":
            mended = f"{text.rstrip()} {_CONSOLE}\n"
        else:
            mended = _KERNEL_LINE.sub(rf"\1 {_CONSOLE}", text)
        write(draft, path, mended, why)
    yield Finding("warn", "no serial console: a boot elsewhere cannot be watched by its text", repaired=True)


def repair_firmware(draft: Draft, system: System, target: Target) -> Iterator[Finding]:
    """Drafts the loader that every UEFI firmware tries: the list of boot entries does not travel with a disk."""
    if target.firmware is Firmware.BIOS:
        if not system.disks.starts_by_bios:
            yield Finding("stop", "the first disk has no code that a BIOS could start", "boot it with UEFI firmware")
        return
    if not system.has_esp:
        yield Finding("stop", "there is no EFI partition", "boot it with BIOS firmware")
        return
    files = draft.glob("esp:/*/*/*.*")
    by_name = {path.lower(): path for path in files}
    if "esp:/efi/boot/bootx64.efi" in by_name:
        return
    what = "the EFI partition has no EFI/BOOT/BOOTX64.EFI: other firmware would find nothing to start"
    loaders = [
        path for path in files if path.lower().endswith(("/shimx64.efi", "/grubx64.efi", "/systemd-bootx64.efi"))
    ]
    # shim first: with Secure Boot the firmware starts nothing else; it starts the grubx64.efi beside itself
    first = next((path for name in ("shim", "grub", "systemd") for path in loaders if f"/{name}" in path.lower()), None)
    if first is None:
        yield Finding("stop", what, "grub-install --target=x86_64-efi --removable, and a new recovery point")
        return
    folder = next((path.rpartition("/")[0] for path in draft.glob("esp:/EFI/*/*") if "/boot/" in path.lower()), "")
    folder = folder or "esp:/EFI/BOOT"
    copies = {first: f"{folder}/BOOTX64.EFI"}
    beside = by_name.get(f"{first.rpartition('/')[0]}/grubx64.efi".lower())
    if "/shim" in first.lower() and beside and f"{folder}/grubx64.efi".lower() not in by_name:
        copies[beside] = f"{folder}/grubx64.efi"
    for source, place in copies.items():
        content = draft.read(source)
        if content is None:
            yield Finding("stop", what, f"{source.removeprefix('esp:')} cannot be read")
            return
        draft.write(place, content, "the loader that every firmware tries")
    yield Finding("stop", what, repaired=True)
