"""What is said of a disk, made by the tools that make it."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from agent.rescue.contents import contents, disks_of, read_head

PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"


def made(folder: Path, *command: str) -> bytes:
    path = folder / "disk"
    with path.open("wb") as file:
        file.truncate(320 << 20)
    tool = shutil.which(command[0], path=PATH)
    if tool is None:
        pytest.skip(f"needs {command[0]}")
    subprocess.run([tool, *command[1:], path], check=True, capture_output=True)
    return read_head(str(path))


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("mke2fs", "-q", "-t", "ext4", "-L", "rootfs"), 'ext4 "rootfs"'),
        (("mkfs.xfs", "-q", "-L", "data"), 'xfs "data"'),
        (("mkfs.btrfs", "-q"), "btrfs"),
        (("mkfs.vfat", "-F", "32", "-n", "EFI"), 'FAT "EFI"'),
        (("mkfs.vfat", "-F", "16"), "FAT"),
        (("mkswap", "-q"), "swap"),
    ],
)
def test_a_filesystem_is_named_with_its_label(tmp_path: Path, command: tuple[str, ...], words: str) -> None:
    head = made(tmp_path, *command)
    assert contents(head, []) == words
    assert contents(b"", [("/dev/sda1", head)]) == f"sda1: {words}"


def test_partitions_are_told_one_by_one() -> None:
    ntfs = b"\xeb\x52\x90NTFS    ".ljust(4096, b"\0")
    parts = [("/dev/sda1", ntfs), ("/dev/sda2", b"garbage".ljust(4096)), ("/dev/sda3", bytes(4096))]
    assert contents(b"", parts) == "sda1: NTFS (Windows), sda2: unknown data, sda3: nothing"


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (bytes(65536), "nothing"),
        (b"", "cannot be read"),
        (b"x" * 65536, "unknown data"),
        (b"x" * 510 + b"\x55\xaa", "a boot sector, without partitions that this system knows"),
        (b"LUKS\xba\xbe\0\1", "encrypted (LUKS)"),
        (bytes(512) + b"LABELONE", "LVM"),
        (bytes(4096) + b"\xfc\x4e\x2b\xa9", "part of a RAID (md)"),
    ],
)
def test_what_else_there_may_be(head: bytes, words: str) -> None:
    assert contents(head, []) == words


def test_labels_cannot_write_on_the_screen() -> None:
    head = bytearray(0x500)
    head[0x438:0x43A] = b"\x53\xef"
    head[0x478:0x480] = b"a\x1b[2J\n\xff\0"
    assert contents(bytes(head), []) == 'ext4 "a?[2J??"'


def test_a_disk_is_told_with_what_it_holds_and_none_that_fails_is_left_out(tmp_path: Path) -> None:
    found = [
        {
            "name": "/dev/sda",
            "size_bytes": 1 << 30,
            "model": "QEMU HARDDISK",
            "serial": "QM1",
            "partitions": [{"name": "/dev/sda1"}],
        },
        {"name": str(tmp_path / "gone"), "size_bytes": 1, "model": "", "serial": "", "partitions": []},
    ]
    first, second = disks_of(found, lambda name: b"\xeb\x52\x90NTFS    " if name == "/dev/sda1" else read_head(name))
    assert (first.name, first.holds) == ("/dev/sda", "sda1: NTFS (Windows)")
    assert second.holds == "cannot be read"
