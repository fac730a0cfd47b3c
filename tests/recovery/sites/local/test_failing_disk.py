"""A disk that fails to take what was written, and later works again: what it has is believed, not the kernel's cache.

After a failure the kernel still has the pages, as if they were on the disk, and says so only once. Who goes on with
what they show calls it written, and it is gone with them.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from threading import Lock

import pytest

from agent.protocol.errors import StorageError
from recovery.sites.local.chain import Chain
from recovery.sites.local.layer_io import LayerIO
from recovery.sites.local.layout import PLACE
from tests.faults.machine import Ballast, loop_device, mounted

pytestmark = pytest.mark.root
SIZE = 200 << 20
CLUSTER = 65_536
FAR = 1536 * CLUSTER
"""A cluster that the first table of level 2 leads to, in another page of it than the first."""
BLOCK = b"\x5a" * CLUSTER


class ThinDisk:
    """A small filesystem on storage that may run out of space unnoticed by it."""

    def __init__(self, storage: Path, device: str, folder: Path) -> None:
        self.folder = folder
        self._file = storage / "disk.img"
        self._device = device
        self._ballast = Ballast(storage)
        self._mount = contextlib.ExitStack()
        self._mount.enter_context(mounted(device, folder))

    def fail_to_take(self, path: Path, place: int, length: int) -> None:
        """From now on this part of the file, which is lost, is not taken when it is written."""
        os.sync()
        part = ["-o", str(self._on_disk(path, place)), "-l", str(length)]
        subprocess.run(["fallocate", "-p", *part, self._file], check=True)
        self._ballast.fill()

    def work_again(self) -> None:
        self._ballast.empty()

    def mount_again(self) -> None:
        """What there is now is on the disk."""
        self.unmount()
        self._mount.enter_context(mounted(self._device, self.folder))

    def unmount(self) -> None:
        self._mount.close()

    def _on_disk(self, path: Path, place: int) -> int:
        listed = subprocess.run(["filefrag", "-v", "-b4096", path], check=True, capture_output=True, text=True)
        for first, last, begin in re.findall(r"\d+: +(\d+)\.\. *(\d+): +(\d+)\.\.", listed.stdout):
            if int(first) <= place // 4096 <= int(last):
                return (int(begin) - int(first)) * 4096 + place
        raise AssertionError(f"{path} has nothing at {place}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[ThinDisk]:
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a filesystem")
    with mounted("tmpfs", tmp_path / "storage", "-t", "tmpfs", "-o", "size=64m") as storage:
        with (storage / "disk.img").open("wb") as file:
            file.truncate(256 << 20)
        with loop_device(storage / "disk.img") as device:
            subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", "-E", "nodiscard", device], check=True)
            made = ThinDisk(storage, device, tmp_path / "disk")
            yield made
            made.work_again()
            made.unmount()


def create(path: Path, backing: Path | None = None) -> Path:
    on_top = [] if backing is None else ["-F", "qcow2", "-b", backing.name]
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *on_top, path, str(SIZE)], check=True)
    return path


def first_table(io: LayerIO) -> int:
    return io._clusters._level1[0] & PLACE


def read(path: Path) -> bytes:
    with contextlib.closing(LayerIO(path)) as io:
        return bytes(io.read(FAR, CLUSTER))


def test_a_working_state_that_is_read_back_after_a_failed_flush_shows_what_the_disk_has(disk: ThinDisk) -> None:
    path = create(disk.folder / "head.qcow2")
    io = LayerIO(path)
    io.write(0, BLOCK)
    io.flush()
    io.write(FAR, BLOCK)
    disk.fail_to_take(path, first_table(io), CLUSTER)
    with pytest.raises(StorageError):
        io.flush()
    io.close()
    disk.work_again()
    with contextlib.closing(LayerIO(path)) as io:
        seen = io.read(FAR, CLUSTER)
        io.flush()
    disk.mount_again()
    assert read(path) == seen


def test_a_removal_that_goes_on_after_the_disk_failed_loses_nothing(disk: ThinDisk) -> None:
    older, newer = disk.folder / "older.qcow2", disk.folder / "newer.qcow2"
    with contextlib.closing(LayerIO(create(older))) as io:
        io.write(FAR, bytes(CLUSTER - 1) + b"x")  # whose place is written to again, so that only the table is new
        io.zero(FAR, CLUSTER)
        io.flush()
        table = first_table(io)
    with contextlib.closing(LayerIO(create(newer, older))) as io:
        io.write(FAR, BLOCK)
        io.flush()
    chain = Chain(disk.folder, Lock())
    disk.fail_to_take(older, table, CLUSTER)
    with pytest.raises(StorageError):
        chain.delete("older")
    disk.work_again()
    chain.delete("older")
    disk.mount_again()
    assert read(newer) == BLOCK
