from __future__ import annotations

import struct
import uuid

import pytest

from recovery.repair.windows import bcd
from recovery.repair.windows.bcd import Place, Places
from recovery.repair.windows.hive import Hive
from recovery.repair.windows.hivedraft import HiveDraft
from tests.recovery.repair.windows.making import hive_with

pytestmark = pytest.mark.usefixtures("hivex")

MANAGER = "{9dea862c-5cdd-4e70-acc1-f32b344d4795}"
LOADER = "{b2721d73-1db4-4c62-bf78-c548a880142d}"
DISK, OTHER_DISK, ESP, WINDOWS = (uuid.UUID(int=number) for number in range(1, 5))
PLACES = Places(
    known=frozenset({Place.gpt(DISK, ESP), Place.gpt(DISK, WINDOWS)}),
    system=Place.gpt(DISK, ESP),
    windows=Place.gpt(DISK, WINDOWS),
)


def element(thing: str, number: str) -> str:
    return rf"Objects\{thing}\Elements\{number}"


def store(disk: uuid.UUID = DISK, policy: int | None = 1) -> HiveDraft:
    values = {
        (element(MANAGER, "11000001"), "Element"): (3, Place.gpt(disk, ESP).element()),
        (element(MANAGER, "23000003"), "Element"): (1, f"{LOADER}\0".encode("utf-16-le")),
        (element(LOADER, "11000001"), "Element"): (3, Place.gpt(disk, WINDOWS).element()),
        (element(LOADER, "21000001"), "Element"): (3, Place.gpt(disk, WINDOWS).element()),
    }
    if policy is not None:
        values[element(LOADER, "250000e0"), "Element"] = (3, policy.to_bytes(8, "little"))
    return HiveDraft("BCD", Hive("BCD", hive_with(values, "BCD")))


def test_a_partition_is_written_as_windows_writes_it() -> None:
    disk, partition = uuid.UUID("00112233-4455-6677-8899-aabbccddeeff"), uuid.UUID(int=7)
    written = Place.gpt(disk, partition).element()
    assert len(written) == 88
    assert written[16:32] == struct.pack("<IIQ", 6, 0, 0x48)
    assert (written[32:48], written[56:72]) == (partition.bytes_le, disk.bytes_le)
    assert struct.unpack_from("<I", written, 52) == (0,)
    old = Place.dos(0xDF4546AE, 0x1F500000).element()
    assert struct.unpack_from("<Q8xIII", old, 32) == (0x1F500000, 0, 1, 0xDF4546AE)


@pytest.mark.parametrize("place", [Place.gpt(DISK, ESP), Place.dos(0xDF4546AE, 1 << 20)])
def test_a_partition_is_read_as_it_was_written(place: Place) -> None:
    assert bcd.place_of(place.element()) == place


@pytest.mark.parametrize("content", [b"", bytes(88), b"\xff" * 88, bytes(200)])
def test_devices_of_other_kinds_are_no_partitions(content: bytes) -> None:
    assert bcd.place_of(content) is None


def test_a_store_that_holds_is_left_alone() -> None:
    draft = store()
    assert list(bcd.repair(draft, PLACES)) == []
    assert draft.changes == ()


def test_a_store_that_names_another_disk_gets_the_replicas() -> None:
    draft = store(OTHER_DISK)
    findings = list(bcd.repair(draft, PLACES))
    assert [finding.repaired for finding in findings] == [True] * 3
    assert bcd.place_of(draft.value(element(MANAGER, "11000001"), "Element").data) == PLACES.system
    for number in ("11000001", "21000001"):
        assert bcd.place_of(draft.value(element(LOADER, number), "Element").data) == PLACES.windows
    again = HiveDraft("BCD", draft.result())
    assert list(bcd.repair(again, PLACES)) == []


def test_windows_does_not_wait_in_a_menu_after_an_unclean_end() -> None:
    draft = store(policy=None)
    assert [finding.level for finding in bcd.repair(draft, None)] == ["warn"]
    assert draft.value(element(LOADER, "250000e0"), "Element").data == (1).to_bytes(8, "little")


@pytest.mark.parametrize("default", ["", "nonsense", r"{..\..}", "{00000000-0000-0000-0000-000000000000}"])
def test_a_store_without_a_windows_to_start_is_a_finding(default: str) -> None:
    draft = store()
    draft.set_text(element(MANAGER, "23000003"), "Element", default, "")
    findings = list(bcd.repair(draft, PLACES))
    assert [(finding.level, finding.repaired) for finding in findings] == [("stop", False)]


def test_partitions_come_from_both_kinds_of_tables() -> None:
    dos = bytearray(512)
    dos[440:444] = struct.pack("<I", 0xDF4546AE)
    dos[446 + 16 : 446 + 32] = struct.pack("<4xB3xII", 7, 2048, 4096)
    dos[510:512] = b"\x55\xaa"
    assert bcd.partitions(bytes(dos)) == {2: Place.dos(0xDF4546AE, 1 << 20)}
    gpt = bytearray(34 * 512)
    gpt[512:520] = b"EFI PART"
    gpt[512 + 56 : 512 + 72] = DISK.bytes_le
    struct.pack_into("<QII", gpt, 512 + 72, 2, 128, 128)
    gpt[1024 + 128 : 1024 + 160] = uuid.UUID(int=9).bytes_le + WINDOWS.bytes_le
    assert bcd.partitions(bytes(gpt)) == {2: Place.gpt(DISK, WINDOWS)}
    struct.pack_into("<QII", gpt, 512 + 72, 2**63, 2**32 - 1, 2**32 - 1)
    assert bcd.partitions(bytes(gpt)) == {}
    assert bcd.partitions(b"") == {}
