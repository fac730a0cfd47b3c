"""All of a Linux replica's boot repair, in the order that its parts build on one another."""

from __future__ import annotations

from recovery.repair.draft import Draft
from recovery.repair.linux import bootloader, identity, initramfs, names, network, surroundings
from recovery.repair.linux.system import System
from recovery.repair.record import Finding
from recovery.repair.target import Target


def draft_repair(draft: Draft, system: System, target: Target, *, renew: bool = False) -> tuple[Finding, ...]:
    """Look at everything, draft what mends it. A system that is ready has no findings, and no changes. `renew`: it is
    a copy, and becomes a machine of its own."""
    return (
        *initramfs.repair(draft, target),
        *names.repair(draft, system),
        *bootloader.repair_firmware(draft, system, target),
        *bootloader.repair_console(draft, target),
        *network.repair(draft, system),
        *surroundings.repair(draft),
        *(identity.renew(draft) if renew else ()),
        *surroundings.label_new_files(draft),
    )
