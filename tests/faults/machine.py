"""The machine that real processes run on: its disks, its mounts, what it is and what it lacks."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.patience import PATIENCE_SECONDS


class Ballast:
    """Fills the filesystem of a folder, and empties it again."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "ballast"

    def fill(self, leave_bytes: int = 0) -> None:
        """Take all but `leave_bytes`, piece by piece: of a request that does not fit whole, because somebody else was
        quicker, tmpfs gives nothing at all."""
        piece_bytes = 16 << 20
        with open(self._path, "ab") as file:
            while (free := shutil.disk_usage(self._path.parent).free - leave_bytes) > 0 and piece_bytes >= 4096:
                try:
                    os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, min(free, piece_bytes))
                except OSError:
                    piece_bytes //= 2

    def empty(self) -> None:
        self._path.unlink(missing_ok=True)


@contextlib.contextmanager
def loop_device(backing: Path) -> Iterator[str]:
    """`backing` as a block device."""
    attach = subprocess.run(["losetup", "--find", "--show", backing], check=True, capture_output=True, text=True)
    device = attach.stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


@contextlib.contextmanager
def mounted(device: str, folder: Path, *options: str) -> Iterator[Path]:
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", *options, device, folder], check=True)
    try:
        yield folder
    finally:
        unmount(folder)


def unmount(folder: Path) -> None:
    """A process that was killed a moment ago may hold the filesystem until it is gone."""
    limit = time.monotonic() + PATIENCE_SECONDS
    while (done := subprocess.run(["umount", folder], check=False, capture_output=True, text=True)).returncode:
        assert time.monotonic() < limit, done.stderr
        time.sleep(0.05)


def path_without(folder: Path, *missing: str) -> str:
    """A PATH on which everything is found but `missing`."""
    bin_folder = folder / "bin"
    bin_folder.mkdir()
    for place in os.environ["PATH"].split(":"):
        for program in Path(place).iterdir() if Path(place).is_dir() else ():
            link = bin_folder / program.name
            if not any(program.name.startswith(name) for name in missing) and not link.is_symlink():
                link.symlink_to(program)
    return str(bin_folder)


def in_private_mounts(commands: str) -> tuple[str, ...]:
    """A prefix for a command that sees mounts of its own, made by shell commands before it. Needs root."""
    return ("unshare", "--mount", "sh", "-ec", f'{commands}; exec "$0" "$@"')


def on_another_machine(folder: Path, number: int) -> tuple[str, ...]:
    """A prefix for an agent that takes this for another machine. Needs root."""
    identity = folder / f"machine-{number}"
    identity.write_text(f"00000000-0000-4000-8000-{number:012d}\n")
    places = [place for place in ("/sys/class/dmi/id/product_uuid", "/etc/machine-id") if Path(place).exists()]
    return in_private_mounts("; ".join(f"mount --bind {identity} {place}" for place in places))
