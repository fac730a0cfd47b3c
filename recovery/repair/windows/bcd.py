"""The BCD store: which partition the boot manager starts Windows from, and what it does after an unclean end.

A store is a registry hive. A replica keeps its disks' signatures, GUIDs and offsets, so that the store holds as it is;
it is only mended where it names a disk or partition that the replica does not have.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

from recovery.repair.record import Finding
from recovery.repair.windows.hivedraft import BINARY, HiveDraft

STORES = ("esp:/EFI/Microsoft/Boot/BCD", "esp:/Boot/BCD", "/Boot/BCD")
"""On UEFI machines; on BIOS machines with a system partition, and without one."""

_BOOT_MANAGER = "{9dea862c-5cdd-4e70-acc1-f32b344d4795}"
_DEVICE, _OS_DEVICE, _DEFAULT = "11000001", "21000001", "23000003"
_BOOT_STATUS_POLICY, _IGNORE_ALL_FAILURES = "250000e0", 1
_ELEMENT = "Element"
# options' GUID; kind and flags of the device; its length; partition; disk's kind, table's kind; disk
_PARTITION = struct.Struct("<16xIIQ16sII16s16x")
_PARTITION_KIND, _PARTITION_BYTES = 6, 72
_GPT, _DOS = 0, 1
_SECTOR_BYTES = 512


@dataclass(frozen=True, slots=True)
class Place:
    """A partition as BCD names it: by GUIDs (GPT), or by the disk's signature and the offset in bytes (DOS)."""

    table: int
    disk: bytes
    partition: bytes

    @staticmethod
    def gpt(disk: uuid.UUID, partition: uuid.UUID) -> Place:
        return Place(_GPT, disk.bytes_le, partition.bytes_le)

    @staticmethod
    def dos(signature: int, offset_bytes: int) -> Place:
        return Place(_DOS, signature.to_bytes(16, "little"), offset_bytes.to_bytes(16, "little"))

    def element(self) -> bytes:
        return _PARTITION.pack(_PARTITION_KIND, 0, _PARTITION_BYTES, self.partition, 0, self.table, self.disk)


def place_of(element: bytes) -> Place | None:
    """The partition that a device element names; None if it names something else (the boot device, a file, ...)."""
    if len(element) != _PARTITION.size:
        return None
    kind, _, length, partition, disk_kind, table, disk = _PARTITION.unpack(element)
    if (kind, length, disk_kind) != (_PARTITION_KIND, _PARTITION_BYTES, 0) or table not in (_GPT, _DOS):
        return None
    return Place(table, disk, partition)


def partitions(head: bytes) -> dict[int, Place]:
    """Partition's number -> its place, from a disk's first 34 sectors or more; logical DOS partitions are left out.

    A table that cannot be read has no partitions."""
    if head[_SECTOR_BYTES : _SECTOR_BYTES + 8] == b"EFI PART" and len(head) >= 2 * _SECTOR_BYTES:
        disk = uuid.UUID(bytes_le=head[_SECTOR_BYTES + 56 : _SECTOR_BYTES + 72])
        first, count, size = struct.unpack_from("<QII", head, _SECTOR_BYTES + 72)
        entries = ((number, first * _SECTOR_BYTES + (number - 1) * size) for number in range(1, min(count, 128) + 1))
        return {
            number: Place.gpt(disk, uuid.UUID(bytes_le=head[at + 16 : at + 32]))
            for number, at in entries
            if size >= 128 and len(head) >= at + 128 and any(head[at : at + 16])
        }
    if head[510:512] != b"\x55\xaa":
        return {}
    signature = int.from_bytes(head[440:444], "little")
    found = {}
    for number in range(1, 5):
        kind, first = struct.unpack_from("<4xB3xI", head, 446 + 16 * (number - 1))
        if kind:
            found[number] = Place.dos(signature, first * _SECTOR_BYTES)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """What the replica's disks have: all partitions, the one with the boot manager, and the one with Windows."""

    known: frozenset[Place]
    system: Place
    windows: Place


def repair(draft: HiveDraft, places: Places | None) -> Iterator[Finding]:
    """Draft a store from which Windows starts by itself. `places` None: where it points to is not looked at."""
    entry = _default_entry(draft)
    if entry is None:
        yield Finding(
            "stop", "the boot configuration (BCD) names no Windows to start", "bcdboot C:\\Windows, and a new point"
        )
        return
    if places is not None:
        wanted = (
            (_BOOT_MANAGER, _DEVICE, places.system),
            (entry, _DEVICE, places.windows),
            (entry, _OS_DEVICE, places.windows),
        )
        for thing, element, place in wanted:
            named = draft.value(_element(thing, element), _ELEMENT)
            current = place_of(named.data) if named else None
            if current is not None and current not in places.known:
                why = "it named a partition that the replica does not have"
                draft.set(_element(thing, element), _ELEMENT, BINARY, place.element(), why)
                what = "the boot configuration (BCD) names a partition that no disk has"
                yield Finding("stop", what, repaired=True)
    key = _element(entry, _BOOT_STATUS_POLICY)
    policy = draft.value(key, _ELEMENT)
    if policy is None or int.from_bytes(policy.data, "little") != _IGNORE_ALL_FAILURES:
        draft.set(
            key, _ELEMENT, BINARY, _IGNORE_ALL_FAILURES.to_bytes(8, "little"), "nobody is there to answer its menu"
        )
        yield Finding(
            "warn",
            "after an unclean end Windows may wait in its recovery menu instead of starting",
            "bcdedit /set {default} bootstatuspolicy IgnoreAllFailures",
            repaired=True,
        )


def _default_entry(draft: HiveDraft) -> str | None:
    """The object that starts Windows; its name is what another element says, and so not believed."""
    default = draft.text(_element(_BOOT_MANAGER, _DEFAULT), _ELEMENT)
    try:
        name = f"{{{uuid.UUID(default)}}}"
    except ValueError:
        return None
    return name if draft.has_key(rf"Objects\{name}\Elements") else None


def _element(thing: str, element: str) -> str:
    return rf"Objects\{thing}\Elements\{element}"
