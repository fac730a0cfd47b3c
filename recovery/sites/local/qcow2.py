"""One qcow2 file: what its header says, and what QEMU's tools do with it."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from agent.protocol.errors import StorageError
from recovery.sites.contract import Extent
from recovery.sites.local.durable import storage_errors
from recovery.sites.local.tools import qemu_img
from recovery.sites.local.volume_io import LocalVolumeIO

SECTOR_BYTES = 512
CLUSTER_BYTES = 1 << 16

_MAGIC = b"QFI\xfb"
_HEADER = struct.Struct(">4sIQIIQ")  # magic, version, backing name's offset and length, cluster bits, size


@dataclass(frozen=True, slots=True)
class Header:
    size_bytes: int
    backing: str | None
    """As written in the file: relative to the file's folder."""


def read_header(path: Path) -> Header:
    """Raises StorageError, also for what is no qcow2 file."""
    with storage_errors(f"read {path}"), open(path, "rb") as file:
        head = file.read(_HEADER.size)
        if len(head) < _HEADER.size or not head.startswith(_MAGIC):
            raise StorageError(f"{path} is no qcow2 file", "restore the file from a copy of the site's folder")
        _magic, _version, name_offset, name_bytes, _cluster_bits, size_bytes = _HEADER.unpack(head)
        if name_offset == 0:
            return Header(size_bytes, None)
        file.seek(name_offset)
        return Header(size_bytes, file.read(name_bytes).decode())


def create(path: Path, size_bytes: int, backing: str | None) -> None:
    """An empty layer on top of `backing` (a name relative to the file's folder), or all zeros. Appears whole or not."""
    new = path.with_name(f".{path.name}.new")
    on_top = [] if backing is None else ["-F", "qcow2", "-b", backing]
    with storage_errors(f"make {path}"):
        new.unlink(missing_ok=True)
        try:
            qemu_img("create", "-q", "-f", "qcow2", *on_top, str(new), str(size_bytes), doing=f"make {path}")
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)


def resize(path: Path, size_bytes: int) -> None:
    """Cut, or grow with zeros. Repeatable; the file's layer may be left with zeros at its end when this is cut off."""
    present_bytes = read_header(path).size_bytes
    if size_bytes == present_bytes:
        return
    doing = f"resize {path}"
    if size_bytes < present_bytes:
        # qemu-img keeps what the last cluster holds behind the new end, and growing would bring it back
        io = LocalVolumeIO(path, writable=True, on_close=lambda: None)
        try:
            io.zero(size_bytes, present_bytes - size_bytes)
            io.flush()
        finally:
            io.close()
        qemu_img("resize", "-q", "-f", "qcow2", "--shrink", str(path), str(size_bytes), doing=doing)
    else:
        qemu_img("resize", "-q", "-f", "qcow2", str(path), str(size_bytes), doing=doing)


def allocated(path: Path) -> list[Extent]:
    """What this one file holds, zeros included, without looking at its backing file. The file may be in use."""
    alone = {"driver": "qcow2", "backing": None, "file": {"driver": "file", "filename": str(path)}}
    listed = qemu_img("map", "--output=json", "-U", f"json:{json.dumps(alone)}", doing=f"read the map of {path}")
    return merged(Extent(entry["start"], entry["length"]) for entry in json.loads(listed) if entry["present"])


def merge_down(path: Path, into: Path) -> None:
    """Write what `path` holds into its backing file `into`, whose content then is the same; `path` stays as it is."""
    qemu_img("commit", "-q", "-d", "-f", "qcow2", str(path), doing=f"merge {path.name} into {into.name}")


def merged(extents: Iterable[Extent]) -> list[Extent]:
    """Rising, neither touching nor overlapping."""
    result: list[Extent] = []
    for extent in sorted(extents, key=lambda extent: extent.offset):
        if result and extent.offset <= (end := result[-1].offset + result[-1].length):
            last = result[-1].offset
            result[-1] = Extent(last, max(end, extent.offset + extent.length) - last)
        else:
            result.append(extent)
    return result
