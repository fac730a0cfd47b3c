"""All of a Linux replica's boot repair, in the order that its parts build on one another."""

from __future__ import annotations

from recovery.repair.draft import Draft
from recovery.repair.linux import bootloader, identity, initramfs, names, network, surroundings
from recovery.repair.linux.system import System
from recovery.repair.record import Finding
from recovery.repair.target import Target


def draft_repair(draft: Draft, system: System, target: Target, host_name: str | None = None) -> tuple[Finding, ...]:
    """Look at everything, draft what mends it. A system that is ready has no findings, and no changes.
    `host_name`: it is a copy, and becomes a machine of its own, called so."""
    return (
        *initramfs.repair(draft, target),
        *names.repair(draft, system),
        *bootloader.repair_firmware(draft, system, target),
        *bootloader.repair_console(draft, target),
        *network.repair(draft, system),
        *surroundings.repair(draft),
        *(identity.renew(draft, host_name) if host_name else ()),
        *surroundings.label_new_files(draft),
    )
