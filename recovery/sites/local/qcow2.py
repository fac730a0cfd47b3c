"""One qcow2 file: what its header says, and what QEMU's tools do with it."""

from __future__ import annotations

import json
import re
import struct
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.protocol.errors import StorageError
from recovery.sites.contract import Extent
from recovery.sites.local.durable import storage_errors
from recovery.sites.local.tools import QEMU_IMG, last_line, qemu_img, tool

SECTOR_BYTES = 512
MAX_LAYERS = 10_000
WINDOW_BYTES = 8 << 30
"""Of an image's map read at once: a large disk's may have millions of entries, as JSON."""

MAX_NAME_BYTES = 1023  # as qcow2 has it
_FROM_A_COPY = "restore the file from a copy of the site's folder"
_NAME = re.compile(r"[^/\0]+")
_MAGIC = b"QFI\xfb"
_HEADER = struct.Struct(">4sIQIIQ")  # magic, version, backing name's offset and length, cluster bits, size


@dataclass(frozen=True, slots=True)
class Header:
    size_bytes: int
    backing: str | None
    """As written in the file: relative to the file's folder."""


def read_header(path: Path) -> Header:
    """Of a layer whose backing file, if it has one, lies beside it. Raises StorageError, also for what is no qcow2
    file."""
    header = _read_header(path)
    if header.backing is not None and not _NAME.fullmatch(header.backing):
        raise StorageError(f"the header of {path} is damaged: {header.backing!r} is no backing file", _FROM_A_COPY)
    return header


def read_size(path: Path) -> int:
    """In bytes; the backing file may lie anywhere, as that of an instance's volume does. Raises StorageError."""
    return _read_header(path).size_bytes


def _read_header(path: Path) -> Header:
    with storage_errors(f"read {path}"), open(path, "rb") as file:
        head = file.read(_HEADER.size)
        if len(head) < _HEADER.size or not head.startswith(_MAGIC):
            raise StorageError(f"{path} is no qcow2 file", _FROM_A_COPY)
        _magic, _version, name_offset, name_bytes, _cluster_bits, size_bytes = _HEADER.unpack(head)
        if name_offset == 0:
            return Header(size_bytes, None)
        file.seek(name_offset)
        return Header(size_bytes, file.read(min(name_bytes, MAX_NAME_BYTES)).decode(errors="replace"))


def layers(path: Path) -> list[Path]:
    """The file and all that it stands on, newest first: as `depth` counts in what `qemu-img map` says."""
    found = [path]
    while (backing := read_header(found[-1]).backing) is not None:
        found.append(found[-1].with_name(backing))
        if len(found) > MAX_LAYERS:
            raise StorageError(f"the backing files of {path} go round in a circle", "restore the folder from a copy")
    return found


def create(path: Path, size_bytes: int, backing: str | None) -> None:
    """An empty layer on top of `backing` (a name relative to the file's folder), or all zeros. Appears whole or not."""
    new = path.with_name(f".{path.name}.new")
    on_top = [] if backing is None else ["-F", "qcow2", "-b", backing]
    with storage_errors(f"make {path}"):
        new.unlink(missing_ok=True)
        try:
            create_new = ["create", "-q", "-f", "qcow2", *on_top, str(new), str(size_bytes)]
            qemu_img(*create_new, doing=f"make {path}", changing=path)
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)


def allocated(path: Path) -> list[Extent]:
    """What this one file holds, zeros included, without looking at its backing file. The file may be in use."""
    size_bytes, alone = read_size(path), f"json:{json.dumps(_alone(path))}"
    found: list[Extent] = []
    for at in range(0, size_bytes, WINDOW_BYTES):
        entries = _entries(path, Extent(at, min(WINDOW_BYTES, size_bytes - at)), alone)
        found += merged(_extent(entry) for entry in entries if entry["present"])
    return merged(found)


def data(path: Path, within: Extent) -> list[Extent]:
    """Where the file and its backing chain hold anything but zeros. The file may be in use."""
    return merged(_extent(entry) for entry in _entries(path, within, "-f", "qcow2", str(path)) if not entry["zero"])


def _entries(path: Path, within: Extent, *image: str) -> list[dict[str, Any]]:
    """What `qemu-img map` says of a part of an image."""
    part = (f"--start-offset={within.offset}", f"--max-length={within.length}")
    listed = qemu_img("map", "--output=json", "-U", *part, *image, doing=f"read the map of {path}")
    entries: list[dict[str, Any]] = json.loads(listed)
    return entries


def _extent(entry: dict[str, Any]) -> Extent:
    return Extent(entry["start"], entry["length"])


def complaints(path: Path) -> list[str]:
    """What `qemu-img check` finds wrong with this one file's own structures; space that is merely lost is nothing.

    Raises StorageError where it was killed, which says nothing about the file."""
    done = subprocess.run(
        [tool(QEMU_IMG), "check", "-U", "--output=json", f"json:{json.dumps(_alone(path))}"],
        capture_output=True,
        text=True,
        errors="replace",  # it quotes names from a file that may be damaged
        check=False,
    )
    if done.returncode < 0:
        raise StorageError(f"{path}: qemu-img was killed by signal {-done.returncode}", "see if memory runs short")
    try:
        found = json.loads(done.stdout)
    except ValueError:
        return [f"{path}: {last_line(done.stderr) or 'qemu-img check gives no answer'}"]
    wrong = found.get("corruptions", 0) + found.get("check-errors", 0)
    return [f"{path}: qemu-img check finds {wrong} errors in its structures"] if wrong else []


def repair_leaks(path: Path) -> None:
    """Look this one file's structures over, and give back what nothing leads to. Raises StorageError where they are
    wrong in another way, Conflict where another process has the file."""
    alone = f"json:{json.dumps(_alone(path))}"
    qemu_img("check", "-q", "-r", "leaks", alone, doing=f"look over {path}", changing=path)


def _alone(path: Path) -> dict[str, object]:
    """The one file, as QEMU's options, without its backing file."""
    return {"driver": "qcow2", "backing": None, "file": {"driver": "file", "filename": str(path)}}


def merge_down(path: Path, into: Path) -> None:
    """Write what `path` holds into its backing file `into`, whose content then is the same; `path` stays as it is."""
    doing = f"merge {path.name} into {into.name}"
    qemu_img("commit", "-q", "-d", "-f", "qcow2", str(path), doing=doing, changing=into)


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
