"""Another size for a qcow2 file, and zeros where it held nothing."""

from __future__ import annotations

import contextlib
from pathlib import Path

from recovery.sites.contract import Extent
from recovery.sites.local.layer_io import LayerIO
from recovery.sites.local.qcow2 import allocated, read_header
from recovery.sites.local.tools import qemu_img


def resize(path: Path, size_bytes: int) -> None:
    """Cut, or grow with zeros. Repeatable; the file's layer may be left with zeros at its end when this is cut off."""
    present_bytes = read_header(path).size_bytes
    if size_bytes == present_bytes:
        return
    doing = f"resize {path}"
    if size_bytes < present_bytes:
        # qemu-img keeps what the last cluster holds behind the new end, and growing would bring it back
        with contextlib.closing(LayerIO(path)) as io:
            io.zero(size_bytes, present_bytes - size_bytes)
            io.flush()
        qemu_img("resize", "-q", "-f", "qcow2", "--shrink", str(path), str(size_bytes), doing=doing, changing=path)
    else:
        qemu_img("resize", "-q", "-f", "qcow2", str(path), str(size_bytes), doing=doing, changing=path)


def cover(path: Path, start: int) -> None:
    """From `start` on the file holds explicit zeros where it held nothing: whatever its backing file may come to show
    there, it reads the same. Nothing may lie behind `start` in the backing file. Repeatable."""
    size_bytes = read_header(path).size_bytes
    held = [extent for extent in allocated(path) if extent.offset + extent.length > start]
    with contextlib.closing(LayerIO(path)) as io:
        at = start
        for extent in [*held, Extent(size_bytes, 0)]:
            if extent.offset > at:
                io.zero(at, extent.offset - at)
            at = extent.offset + extent.length
        io.flush()
