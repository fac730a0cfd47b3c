"""UEFI's way in: the boot manager where every firmware looks for one, as the list of boot entries does not travel."""

from __future__ import annotations

from collections.abc import Iterator

from recovery.repair.draft import Draft
from recovery.repair.files import GuestFiles
from recovery.repair.record import Finding
from recovery.repair.target import Firmware
from recovery.repair.windows.guest import find, is_program

_FALLBACK = "esp:/EFI/Boot/bootx64.efi"
_BOOT_MANAGER = "esp:/EFI/Microsoft/Boot/bootmgfw.efi"
_BIOS_BOOT_MANAGERS = ("esp:/bootmgr", "/bootmgr")


def repair(draft: Draft, files: GuestFiles, firmware: Firmware) -> Iterator[Finding]:
    """Draft the fallback path. A system disk made for the other firmware is found, and not converted."""
    manager = find(files, _BOOT_MANAGER)
    if firmware is Firmware.BIOS:
        if manager and not any(find(files, path) for path in _BIOS_BOOT_MANAGERS):
            yield Finding(
                "stop", "Windows was installed for UEFI and has no boot manager for a BIOS", "boot it with UEFI"
            )
        return
    fallback = find(files, _FALLBACK)
    if fallback and is_program(files.read(fallback) or b""):
        return
    what = "the EFI partition has no EFI/Boot/bootx64.efi: other firmware would find nothing to start"
    content = files.read(manager) if manager else None
    if content is None or not is_program(content):
        yield Finding(
            "stop", what, "boot it with BIOS firmware if it was installed so; else bcdboot C:\\Windows /f UEFI"
        )
        return
    draft.write(fallback or _FALLBACK, content, "the boot manager where every firmware looks for one")
    yield Finding("stop", what, repaired=True)
