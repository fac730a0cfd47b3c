"""What tells a disk from others, on images that the system's own tools made, and as these tools see them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.volumes.marks import marks
from agent.volumes.source import SourceVolume
from tests.agent.volumes.disks import MIB, SMALLEST_BYTES

PATH = "/usr/sbin:/sbin:/usr/bin:/bin"
GPT = "8f9d9c39-5b05-4d6c-9f0e-6a2c7b1d0e55"
ONE, TWO = "5f1c0de0-0de5-4b1d-9e57-0a4de25beb01", "5f1c0de0-0de5-4b1d-9e57-0a4de25beb02"
MAKING = {
    "ext4": ("mke2fs", "-q", "-t", "ext4"),
    "xfs": ("mkfs.xfs", "-q"),
    "btrfs": ("mkfs.btrfs", "-q"),
    "vfat": ("mkfs.vfat", "-F", "32"),
    "ntfs": ("mkfs.ntfs", "-q", "-F", "-f"),
}


def run(*command: str | Path, given: str = "") -> str:
    program = shutil.which(command[0], path=PATH)
    if program is None:
        pytest.skip(f"needs {command[0]}")
    done = subprocess.run([program, *command[1:]], input=given, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def image(folder: Path, size_bytes: int = 64 * MIB, name: str = "disk.raw") -> Path:
    path = folder / name
    with open(path, "xb") as file:
        file.truncate(size_bytes)
    return path


def marks_of(path: Path) -> list[str]:
    with SourceVolume.open(path) as source:
        return marks(source.read_up_to)


def partitioned(folder: Path, table: str) -> Path:
    """With ext4 in partition 1, swap in 2, nothing in 3 and ext4 in 4."""
    path = image(folder)
    run("sfdisk", "-q", path, given=f"{table}\n,8M\n,8M\n,8M\n,8M\n")
    starts = [int(word) for word in run("sfdisk", "-o", "Start", "-l", path).split() if word.isdigit()][-4:]
    for start, name in ((starts[0], ONE), (starts[3], TWO)):
        run("mke2fs", "-q", "-t", "ext4", "-U", name, "-E", f"offset={start * 512}", path, "8M")
    with open(path, "r+b") as file:  # a header of swap
        file.seek(starts[1] * 512 + 4086)
        file.write(b"SWAPSPACE2")
    return path


def test_a_gpt_disk_is_known_by_its_guid_and_its_filesystems(tmp_path: Path) -> None:
    path = partitioned(tmp_path, f"label: gpt\nlabel-id: {GPT}")
    assert marks_of(path) == [f"gpt:{GPT}", f"1 ext:{ONE}", f"4 ext:{TWO}"]


def test_an_mbr_disk_is_known_by_its_signature_and_its_filesystems(tmp_path: Path) -> None:
    path = partitioned(tmp_path, "label: dos\nlabel-id: 0x5f1c0de0")
    assert marks_of(path) == ["dos:5f1c0de0", f"1 ext:{ONE}", f"4 ext:{TWO}"]


def test_a_gpt_that_was_replaced_by_an_mbr_counts_no_more(tmp_path: Path) -> None:
    path = partitioned(tmp_path, f"label: gpt\nlabel-id: {GPT}")
    run("sfdisk", "-q", "--wipe", "never", path, given="label: dos\nlabel-id: 0xabcd\n,8M\n")
    assert marks_of(path)[0] == "dos:0000abcd"


@pytest.mark.parametrize("kind", MAKING)
def test_a_filesystem_without_partitions_is_known_by_what_the_system_calls_it(kind: str, tmp_path: Path) -> None:
    path = image(tmp_path, SMALLEST_BYTES.get(kind, 64 * MIB))
    run(*MAKING[kind], path)
    told = run("blkid", "-p", "-o", "value", "-s", "UUID", path).lower().replace("-", "")
    (mark,) = marks_of(path)
    assert mark.partition(":")[2].partition("/")[0].replace("-", "") == told


def test_two_disks_of_the_same_tools_differ_and_a_copy_does_not(tmp_path: Path) -> None:
    made = [image(tmp_path, name=f"{name}.raw") for name in "ab"]
    for path in made:
        run("sfdisk", "-q", path, given="label: gpt\n,8M\n")
    assert marks_of(made[0]) != marks_of(made[1])
    copy = tmp_path / "copy.raw"
    shutil.copyfile(made[0], copy)
    assert marks_of(copy) == marks_of(made[0])


def test_a_disk_that_grew_with_its_partition_is_still_known(tmp_path: Path) -> None:
    path = partitioned(tmp_path, "label: dos\nlabel-id: 0x5f1c0de0")
    before = marks_of(path)
    with open(path, "r+b") as file:
        file.truncate(128 * MIB)
    run("sfdisk", "-q", "-N", "4", "--no-reread", path, given=",+32M\n")
    assert marks_of(path) == before


def test_a_blank_disk_has_nothing_that_tells_it_from_others(tmp_path: Path) -> None:
    assert marks_of(image(tmp_path)) == []


def test_a_table_without_an_identity_is_no_mark(tmp_path: Path) -> None:
    path = image(tmp_path)
    run("sfdisk", "-q", path, given="label: dos\nlabel-id: 0x5f1c0de0\n,8M\n")
    with open(path, "r+b") as file:
        file.seek(440)
        file.write(bytes(4))
    assert marks_of(path) == []


@given(st.binary(max_size=4096), st.integers(0, 1 << 40))
def test_whatever_lies_on_a_disk_is_read_in_bounds_and_without_complaint(noise: bytes, shift: int) -> None:
    """A disk may say anything of itself: tables that point behind its end, or hold more than there can be."""
    head = bytearray(noise.ljust(0x11000, noise[-1:] or b"\0"))
    head[510:512] = b"\x55\xaa"
    head[446 + 4] = 0xEE
    head[512:520] = b"EFI PART"
    asked = 0

    def read(offset: int, length: int) -> bytes:
        nonlocal asked
        asked += length
        return bytes(head[(offset + shift) % 512 if offset else 0 :][:length])

    for mark in marks(read):
        assert mark.isprintable()
    assert asked < 64 * MIB
