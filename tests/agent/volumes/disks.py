"""Real disks for tests: loop devices on sparse images, filesystems on them; all is thawed, unmounted and detached."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.consistency.freeze import thaw_all
from tests.patience import PATIENCE_SECONDS

MIB = 1 << 20
SMALLEST_BYTES = {"ext4": 16 * MIB, "xfs": 304 * MIB, "btrfs": 112 * MIB}

needs_root = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="loop devices and mounts need root")]


def run(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE_SECONDS).stdout.strip()


class Lab:
    """Makes images, loop devices and mounts below `folder`; leaving it removes them in reverse."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self.folder = folder
        self._stack = stack

    def image(self, size_bytes: int, name: str = "disk.img", folder: Path | None = None) -> Path:
        path = (folder or self.folder) / name
        with open(path, "xb") as file:
            file.truncate(size_bytes)
        return path

    def attach(self, image: Path, *options: str) -> str:
        device = run("losetup", "--find", "--show", *options, image)
        self._stack.callback(run, "losetup", "--detach", device)
        return device

    def mount(self, device: str, name: str, *options: str) -> Path:
        where = self.folder / name
        where.mkdir(exist_ok=True)
        run("mount", *options, device, where)

        def unmount() -> None:
            thaw_all([str(where)])  # a filesystem left frozen would hang the machine
            _unmount(where)

        self._stack.callback(unmount)
        return where

    def filesystem(self, kind: str, name: str = "disk", folder: Path | None = None) -> tuple[Path, str, Path]:
        """(image, loop device, mountpoint) of a new filesystem."""
        image = self.image(SMALLEST_BYTES[kind], f"{name}.img", folder)
        device = self.attach(image)
        run(f"mkfs.{kind}", "-q", device)
        return image, device, self.mount(device, name)


def _unmount(where: Path) -> None:
    """A process that was killed a moment ago may hold the filesystem until it is gone."""
    limit = time.monotonic() + PATIENCE_SECONDS
    while subprocess.run(["umount", where], capture_output=True).returncode != 0:
        assert time.monotonic() < limit, f"{where} cannot be unmounted"
        time.sleep(0.05)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with contextlib.ExitStack() as stack:
        yield Lab(tmp_path, stack)


class Writer:
    """Writes a file durably in a thread; a frozen filesystem holds it up."""

    def __init__(self, folder: Path, name: str = "written") -> None:
        self._path = folder / name
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    def held_up(self) -> bool:
        self._thread.join(0.3)
        return self._thread.is_alive()

    def done(self) -> bool:
        self._thread.join(PATIENCE_SECONDS)
        return not self._thread.is_alive() and self._path.read_bytes() == b"line\n" * 1000

    def _write(self) -> None:
        with open(self._path, "wb") as file:
            file.write(b"line\n" * 1000)
            file.flush()
            os.fsync(file.fileno())
