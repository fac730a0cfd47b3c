"""Layers to try the working state's own writer on, and QEMU's word on what it made of them."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from recovery.sites.local.layer_io import LayerIO


def create(path: Path, size_bytes: int, *, cluster_bytes: int = 65_536, backing: Path | None = None) -> None:
    on_top = [] if backing is None else ["-F", "qcow2", "-b", backing.name]
    options = ["-o", f"cluster_size={cluster_bytes}"]
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, *on_top, path, str(size_bytes)], check=True)


def check(path: Path, *, leaks: bool = False) -> None:
    """QEMU finds nothing wrong; `leaks`: but for space that is lost."""
    done = subprocess.run(["qemu-img", "check", "--output=json", path], capture_output=True, text=True, check=False)
    assert done.returncode in ((0, 3) if leaks else (0,)), done.stdout + done.stderr


def seen_by_qemu(path: Path) -> bytes:
    raw = path.with_suffix(".raw")
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, raw], check=True)
    return raw.read_bytes()


@contextlib.contextmanager
def opened(path: Path) -> Iterator[LayerIO]:
    with contextlib.closing(LayerIO(path)) as io:
        yield io


def check_locked(path: Path) -> None:
    refused = subprocess.run(["qemu-img", "resize", "-q", path, "+1M"], capture_output=True, text=True, check=False)
    assert refused.returncode == 1 and "lock" in refused.stderr
