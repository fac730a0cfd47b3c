"""Loop devices and filesystems on them, removed again whatever happens."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.tracking import ChangeTracker, open_tracker
from tests.patience import PATIENCE_SECONDS

BLOCK_BYTES = 64 << 10


def run(*command: str | Path) -> str:
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    return done.stdout.strip()


@dataclass(frozen=True)
class LoopDisk:
    device: str
    image: Path
    size_bytes: int

    def flush(self) -> None:
        """What was written through the device file's page cache is in the image when this returns."""
        fd = os.open(self.device, os.O_RDWR)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def blocks(self) -> dict[int, bytes]:
        """What the image holds: block index -> content, for the blocks that are not all zero."""
        found: dict[int, bytes] = {}
        fd = os.open(self.image, os.O_RDONLY)
        try:
            at = 0
            while at < self.size_bytes:
                try:
                    data = os.lseek(fd, at, os.SEEK_DATA)
                except OSError as error:
                    assert error.errno == errno.ENXIO  # a hole up to the end
                    break
                end = os.lseek(fd, data, os.SEEK_HOLE)
                for block in range(data // BLOCK_BYTES, -(-end // BLOCK_BYTES)):
                    content = os.pread(fd, BLOCK_BYTES, block * BLOCK_BYTES)
                    if content.count(0) != len(content):
                        found[block] = content
                at = -(-end // BLOCK_BYTES) * BLOCK_BYTES
        finally:
            os.close(fd)
        return found

    def tracker(self) -> ChangeTracker:
        tracker = open_tracker(self.device, self.size_bytes, BLOCK_BYTES)
        assert isinstance(tracker, ChangeTracker), tracker
        return tracker


@pytest.fixture
def cleanup() -> Iterator[contextlib.ExitStack]:
    """What tests made is removed in the reverse order, since disks lie on filesystems that lie on disks."""
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def loop_disk(tmp_path: Path, cleanup: contextlib.ExitStack) -> Callable[..., LoopDisk]:
    """Makes loop devices of a size in bytes, all zero; the image lies in the folder given."""
    if os.geteuid() != 0:
        pytest.skip("loop devices need root")

    def make(size_bytes: int, folder: Path = tmp_path) -> LoopDisk:
        image = folder / f"disk{len(list(folder.glob('disk*')))}.img"
        with open(image, "wb") as file:
            file.truncate(size_bytes)
        cleanup.callback(image.unlink)
        device = run("losetup", "--find", "--show", image)
        cleanup.callback(run, "losetup", "--detach", device)
        return LoopDisk(device, image, size_bytes)

    return make


@pytest.fixture
def mounted(tmp_path: Path, cleanup: contextlib.ExitStack) -> Callable[[LoopDisk, str], Path]:
    """Makes a filesystem on a loop device and mounts it."""

    def make(disk: LoopDisk, filesystem: str) -> Path:
        force = {"ext4": "-F", "xfs": "-f"}[filesystem]
        run(f"mkfs.{filesystem}", "-q", force, disk.device)
        where = tmp_path / f"mounted-{Path(disk.device).name}"
        where.mkdir()
        run("mount", "-t", filesystem, disk.device, where)
        cleanup.callback(run, "umount", where)
        return where

    return make
