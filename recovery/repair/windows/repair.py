"""All of a Windows replica's boot repair: what it needs is drafted first, then written hive by hive, and can be undone.

findings, keys = draft_repair(draft, files, target)     nothing is changed yet
write_keys(files, keys)                                 each hive read, replayed, edited, compared, written, read
undo_keys(files, keys)                                  what was not changed since goes back to what it was
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from agent.protocol.errors import RecoveryError
from recovery.repair.draft import Draft
from recovery.repair.files import GuestFiles
from recovery.repair.record import Finding, KeyChange
from recovery.repair.target import Bus, Target
from recovery.repair.windows import bcd, drivers, firmware, firstboot, identity
from recovery.repair.windows.edit import apply
from recovery.repair.windows.guest import (
    SOFTWARE_HIVE,
    SYSTEM_HIVE,
    WindowsFiles,
    find,
    is_program,
    read_hive,
    refuse_hibernated,
)
from recovery.repair.windows.hive import Hive
from recovery.repair.windows.hivedraft import HiveDraft
from recovery.repair.windows.hivedraft import undo as draft_undo
from recovery.repair.windows.supplied import NOTHING_SUPPLIED, Supplied


def fitting(
    files: GuestFiles, target: Target, supplied: Supplied, instead: Bus | None
) -> tuple[Target, tuple[Finding, ...]]:
    """The target; with the other bus where there is a driver for that and none for its own, here or there."""
    has = any(supplied.disk_driver(driver.service) for driver in drivers.DRIVERS[target.bus])
    if instead is None or has or _has_driver(files, target.bus) or not _has_driver(files, instead):
        return target, ()
    what = f"it has no driver for {target.bus} disks, and none is supplied: it starts on {instead}, which is slower"
    finding = Finding("warn", what, "put virtio-win's files for its Windows into DATA/drivers", repaired=True)
    return replace(target, bus=instead), (finding,)


def draft_repair(
    draft: Draft,
    files: WindowsFiles,
    target: Target,
    *,
    places: bcd.Places | None = None,
    data_volumes: bool = False,
    supplied: Supplied = NOTHING_SUPPLIED,
    host_name: str | None = None,
) -> tuple[tuple[Finding, ...], tuple[KeyChange, ...]]:
    """Look at everything, draft what mends it; the changes of keys are returned, those of files are in the draft.

    `places`: where the boot configuration must point to, where known. `data_volumes`: there are disks beside the first.
    `supplied`: what there is for guests without a driver of their own. `host_name`: it is a copy, and gets this name.
    Raises RecoveryError for a replica that cannot be repaired (hibernated, a damaged hive, a dirty one without its
    logs)."""
    refuse_hibernated(files)
    draft_of_system = _open(files, SYSTEM_HIVE)
    if draft_of_system is None:
        what = f"there is no Windows on the replica: it has no {SYSTEM_HIVE}"
        raise RecoveryError(what, "take another recovery point, and repair that")
    if not drivers.control_sets(draft_of_system):
        raise RecoveryError("the registry hive SYSTEM names no control set to boot with", "take another recovery point")
    findings: list[Finding] = []
    added = _supply(draft, files, target, supplied)
    findings += drivers.repair(
        draft_of_system, target.bus, lambda name: f"/windows/{name.lower()}" in added or _has(files, name)
    )
    if data_volumes:
        findings += drivers.repair_data_disks(draft_of_system)
    findings += firmware.repair(draft, files, target.firmware)
    store = next((found for path in bcd.STORES if (found := _open(files, path))), None)
    if store is None:
        findings.append(Finding("stop", "there is no boot configuration (BCD)", "bcdboot C:\\Windows, and a new point"))
    else:
        findings += bcd.repair(store, places)
    findings += firstboot.repair(draft, draft_of_system, _spelt(files, "/Windows"), supplied.packages)
    software = None
    if host_name is not None:
        findings.append(identity.rename(draft_of_system, host_name))
        software, said = _with_new_guid(files)
        findings.append(said)
    hives = (draft_of_system, store, software)
    return tuple(findings), tuple(change for hive in hives if hive is not None for change in hive.changes)


def write_keys(files: GuestFiles, changes: Sequence[KeyChange]) -> None:
    """Make the changes, which `draft_repair` found for just these files. Raises RecoveryError; a hive that cannot be
    changed as asked stays as it is."""
    for path in dict.fromkeys(change.hive for change in changes):
        mine = [change for change in changes if change.hive == path]
        _write(files, path, apply(_present(files, path), mine))


def undo_keys(files: GuestFiles, changes: Sequence[KeyChange]) -> tuple[list[str], list[str]]:
    """Take the changes back; (what was undone, what somebody else changed since and so was left as it is).

    The hives may have lived on. May be repeated. Raises RecoveryError."""
    undone: list[str] = []
    left: list[str] = []
    for path in dict.fromkeys(change.hive for change in reversed(changes)):
        draft = HiveDraft(path, _present(files, path))
        done, kept = draft_undo(draft, [change for change in changes if change.hive == path])
        if draft.changes:
            _write(files, path, draft.result())
        undone += done
        left += kept
    return undone, left


def _open(files: GuestFiles, path: str) -> HiveDraft | None:
    found = find(files, path)
    hive = read_hive(files, found) if found else None
    return HiveDraft(found, hive) if found and hive else None


def _with_new_guid(files: GuestFiles) -> tuple[HiveDraft | None, Finding]:
    """The SOFTWARE hive drafted anew; a copy comes up without that too, so what is in the way is only said."""
    try:
        software = _open(files, SOFTWARE_HIVE)
    except RecoveryError as error:
        return None, Finding("warn", f"this copy keeps the server's machine GUID: {error.message}", error.hint)
    if software is None:
        return None, Finding("warn", f"this copy keeps the server's machine GUID: it has no {SOFTWARE_HIVE}")
    return software, identity.renew_guid(software)


def _present(files: GuestFiles, path: str) -> Hive:
    hive = read_hive(files, path)
    if hive is None:
        raise RecoveryError(f"{path} is gone from the replica", "take another recovery point")
    return hive


def _write(files: GuestFiles, path: str, hive: Hive) -> None:
    files.write(path, hive.content)
    if files.read(path) != hive.content:
        raise RecoveryError(
            f"{path} does not read as it was written", "the replica's disk may be full; take another point"
        )


def _has(files: GuestFiles, name: str) -> bool:
    return find(files, f"/Windows/{name}") is not None


def _has_driver(files: GuestFiles, bus: Bus) -> bool:
    return any(_has(files, f"System32/drivers/{driver.service}.sys") for driver in drivers.DRIVERS[bus])


def _spelt(files: GuestFiles, path: str) -> str:
    """A folder as the guest spells it: one that differs in case only would be another to our eyes, and make two of it
    to Windows'. Raises RecoveryError without it."""
    found = find(files, path)
    if found is None:
        raise RecoveryError(f"the replica has no folder {path}", "take another recovery point")
    return found


def _supply(draft: Draft, files: WindowsFiles, target: Target, supplied: Supplied) -> set[str]:
    """Draft the operator's driver for this bus, where the guest has none that would do; its path, in lower case."""
    if _has_driver(files, target.bus):
        return set()
    for name in (driver.service for driver in drivers.DRIVERS[target.bus]):
        content = supplied.disk_driver(name)
        if content is not None:
            if not is_program(content):
                raise RecoveryError(
                    f"the driver {name} that was supplied is no 64-bit Windows driver", "supply another"
                )
            path = f"{_spelt(files, '/Windows/System32/drivers')}/{name}.sys"
            draft.write(path, content, f"the operator's driver for {target.bus} disks")
            return {path.lower()}
    return set()
