from __future__ import annotations

import json
import os
import socket
import struct
import uuid
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.images import describe_image
from agent.inventory import collect, machine_id
from agent.report import inventory_text

EFI = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b").bytes_le
BIOS_BOOT = uuid.UUID("21686148-6449-6e6f-744e-656564454649").bytes_le
DATA = uuid.UUID("ebd0a0a2-b9e5-4433-87c0-68b6b72699c7").bytes_le
NTFS = b"\xeb\x52\x90NTFS    "
SECTOR = 512


def gpt(path: Path, *partitions: tuple[bytes, bytes]) -> Path:
    """Partitions (type, first bytes) that begin at sector 2048, 2049 and so on."""
    image = bytearray(4096 * SECTOR)
    image[510:512] = b"\x55\xaa"
    image[446 + 4] = 0xEE
    image[SECTOR : SECTOR + 8] = b"EFI PART"
    struct.pack_into("<QII", image, SECTOR + 72, 2, 128, 128)
    for number, (kind, head) in enumerate(partitions):
        start = 2048 + number
        image[2 * SECTOR + 128 * number : 2 * SECTOR + 128 * number + 40] = kind + bytes(16) + struct.pack("<Q", start)
        image[start * SECTOR : start * SECTOR + len(head)] = head
    path.write_bytes(image)
    return path


def dos(path: Path, kind: int, head: bytes) -> Path:
    image = bytearray(SECTOR)
    image[510:512] = b"\x55\xaa"
    image[446:462] = struct.pack("<4xB3x2I", kind, 1, 1)
    path.write_bytes(bytes(image) + head.ljust(SECTOR, b"\0"))
    return path


def said(path: Path | str) -> tuple[str, str]:
    found = describe_image([str(path)])
    return found["os"], found["boot_mode"]


def test_a_windows_for_uefi_is_told_from_its_image(tmp_path: Path) -> None:
    assert said(gpt(tmp_path / "disk", (EFI, b""), (DATA, NTFS))) == ("Windows", "uefi")


def test_a_windows_for_bios_is_told_from_its_image(tmp_path: Path) -> None:
    assert said(dos(tmp_path / "disk", 7, NTFS)) == ("Windows", "bios")


def test_an_image_that_a_bios_can_start_too_is_one_for_a_bios(tmp_path: Path) -> None:
    assert said(gpt(tmp_path / "disk", (BIOS_BOOT, b""), (EFI, b""), (DATA, b"ext4"))) == ("an image file", "bios")


def test_an_image_without_a_table_says_little(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(b"")
    assert said(tmp_path / "disk") == ("an image file", "bios")


@pytest.mark.parametrize("length", [1, 511, 512, 520, 1023, 1024, 1100, 1048576])
def test_an_image_that_was_cut_short_is_described(length: int, tmp_path: Path) -> None:
    path = gpt(tmp_path / "disk", (EFI, b""), (DATA, NTFS))
    os.truncate(path, length)
    assert said(path)[0] == "an image file"


def test_a_device_and_what_is_not_there_are_not_described(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for paths in ([], ["/dev/null"], [str(tmp_path / "nothing")], [str(tmp_path)], [str(tmp_path / "pipe")]):
        assert describe_image(paths) == {}


def test_the_inventory_of_a_server_in_an_image_says_nothing_of_how_this_machine_boots(tmp_path: Path) -> None:
    found = collect([str(gpt(tmp_path / "disk", (EFI, b""), (DATA, NTFS)))])
    assert (found["os"], found["boot_mode"], found["boots_on"], found["boot_findings"]) == ("Windows", "uefi", [], [])
    assert found["boot_files"] is None


def test_the_inventory_of_a_server_in_an_image_does_not_take_this_machine_for_it(tmp_path: Path) -> None:
    image = str(gpt(tmp_path / "disk", (DATA, b"ext4")))
    found = json.loads(json.dumps(collect([image])))
    assert [found[name] for name in ("hostname", "kernel", "architecture", "cpus", "memory_mib")] == [None] * 5
    assert found["network"] == []
    assert found["machine_id"] == machine_id(), "whose agent it is has to be told all the same"
    text = inventory_text(found)
    assert text.startswith("an image file, bios; its name, processors, memory and addresses are not known\n")
    assert socket.gethostname() not in text.splitlines()[0]


@given(data=st.data())
def test_any_table_is_described(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = gpt(tmp_path_factory.mktemp("image") / "disk", (EFI, b""), (DATA, NTFS))
    with open(path, "r+b") as image:
        for _ in range(data.draw(st.integers(1, 4))):
            image.seek(data.draw(st.integers(SECTOR, 2 * SECTOR + 256)))
            image.write(data.draw(st.sampled_from([b"\xff" * 8, bytes(8), b"\xff\xff\xff\x7f"])))
    assert said(path)[1] in ("uefi", "bios")
