"""`understudy export`: a point as files that need no Understudy, and what to do with them next.

Blocks are fetched and proven as in a pull. Other hypervisors' disks end at a whole MiB, with zeros behind the point's
content: vSphere and Azure want that, and not every reader of VHDX takes another end."""

from __future__ import annotations

import argparse
import hashlib
import os
import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from agent.protocol.errors import NotFound, StorageError, ToolMissing, UsageError
from agent.protocol.frames import Kind, decode
from agent.protocol.grid import BlockGrid
from service.cli.client import Service, api
from service.cli.handing_over import ways_on
from service.cli.output import emit, show_note, show_share
from service.cli.ovf import MAX_DISKS, DiskFile, Hardware, descriptor, manifest
from service.cli.text import counted
from service.cli.vmdk import write_stream_optimized

EXPORT_BLOCKS = 128
_MIB = 1 << 20
_BY_QEMU = {
    "qcow2": ("qcow2", None),
    "vhdx": ("vhdx", "subformat=dynamic"),
    "vhd": ("vpc", "subformat=fixed,force_size=on"),
}
"""qemu-img's word for a format, and its options."""
FORMATS = ("raw", "qcow2", "vmdk", "ovf", "vhdx", "vhd")
_AS_IT_IS = ("raw", "qcow2")
_DEFAULT_CPUS, _DEFAULT_MEMORY_MIB = 2, 1024
"""Where nobody knows what the server has."""


def export(options: argparse.Namespace) -> None:
    service = Service.of(options)
    point = service.get(api("points", options.point), tenant=options.tenant)
    whole = options.format == "ovf"
    volumes = list(range(len(point["volumes"]))) if whole else [options.volume or 0]
    _refuse(options, point, volumes)
    hardware = _hardware(service, point["server"])
    out = Path(options.out)
    try:
        with tempfile.TemporaryDirectory(prefix=".export-", dir=out.resolve().parent) as folder:
            files = _Exporter(options, service, point, Path(folder)).make(out, volumes, hardware)
            for path in files:
                (Path(folder) / path.name).replace(path)
    except OSError as error:
        raise StorageError(f"{out} cannot be written: {error.strerror}", "check the folder and its space") from None
    document = {
        "point": point["id"],
        "server": point["server"],
        "volume": None if whole else volumes[0],
        "format": options.format,
        "file": str(out),
        "files": [str(path) for path in files],
        "size_bytes": sum(point["volumes"][index]["size_bytes"] for index in volumes),
        "next": ways_on(options.format, point["server"], hardware, files, len(point["volumes"])),
    }
    what = counted(len(volumes), "volume") if whole else f"volume {volumes[0]}"
    made = ", ".join(shlex.quote(str(path)) for path in files)
    emit(options, document, "\n".join([f"{made}: {point['id']}, {what}, as {options.format}", *document["next"]]))


def _refuse(options: argparse.Namespace, point: dict[str, Any], volumes: list[int]) -> None:
    count = len(point["volumes"])
    if options.format == "ovf" and options.volume is not None:
        raise UsageError("--format ovf is the whole server", "leave --volume out; one volume alone: --format vmdk")
    if not all(0 <= index < count for index in volumes):
        raise UsageError(f"{options.point} has no volume {options.volume}", f"it has {count}")
    if options.format == "ovf" and count > MAX_DISKS:
        raise UsageError(
            f"{options.point} has {count} volumes, and an OVF up to {MAX_DISKS}", "--format vmdk, one by one"
        )
    if options.format == "ovf" and Path(options.out).suffix != ".ovf":
        raise UsageError(f"{options.out} is no name for an OVF", "vSphere knows it by its end: name it like web01.ovf")


def _hardware(service: Service, server: str) -> Hardware:
    """What the server has at home, as far as its inventory tells."""
    try:
        inventory = service.get(api("servers", server))["inventory"]
    except NotFound:
        inventory = {}
    return Hardware(
        cpus=inventory.get("cpus") or _DEFAULT_CPUS,
        memory_mib=inventory.get("memory_mib") or _DEFAULT_MEMORY_MIB,
        uefi=inventory.get("boot_mode") == "uefi",
        windows="windows" in str(inventory.get("os")).lower(),
    )


class _Exporter:
    """Makes files in `folder` that are to be moved to their places."""

    def __init__(self, options: argparse.Namespace, service: Service, point: dict[str, Any], folder: Path) -> None:
        self._options = options
        self._service = service
        self._point = point
        self._folder = folder

    def make(self, out: Path, volumes: list[int], hardware: Hardware) -> list[Path]:
        """The places of what was made, the first being what people name."""
        if self._options.format == "ovf":
            return self._make_ovf(out, volumes, hardware)
        self._make_disk(volumes[0], out.name)
        return [out]

    def _make_ovf(self, out: Path, volumes: list[int], hardware: Hardware) -> list[Path]:
        disks = []
        for number, index in enumerate(volumes, 1):
            name = f"{out.stem}-disk{number}.vmdk"
            size_bytes = self._make_disk(index, name)
            disks.append(DiskFile(name=name, file_bytes=(self._folder / name).stat().st_size, size_bytes=size_bytes))
        (self._folder / out.name).write_text(descriptor(self._point["server"], hardware, disks))
        listed = [out.name, *(disk.name for disk in disks)]
        sums = {name: _sha256(self._folder / name) for name in listed}
        (self._folder / f"{out.stem}.mf").write_text(manifest(sums))
        return [out.with_name(name) for name in (out.name, f"{out.stem}.mf", *listed[1:])]

    def _make_disk(self, index: int, name: str) -> int:
        """The size of the disk in it, in bytes."""
        raw, made = self._folder / ".raw", self._folder / name
        size_bytes: int = self._point["volumes"][index]["size_bytes"]
        self._fetch(index, raw)
        if self._options.format not in _AS_IT_IS:
            size_bytes += -size_bytes % _MIB
            os.truncate(raw, size_bytes)
        if self._options.format == "raw":
            raw.rename(made)
        elif self._options.format in _BY_QEMU:
            self._convert(raw, made)
        else:
            root = self._point["volumes"][index]["root"]
            with open(raw, "rb") as disk, open(made, "wb") as file:
                write_stream_optimized(disk, size_bytes, file, name, root, lambda done: self._show(done, size_bytes))
        raw.unlink(missing_ok=True)
        return size_bytes

    def _fetch(self, index: int, raw: Path) -> None:
        volume = self._point["volumes"][index]
        grid = BlockGrid(volume["size_bytes"], volume["block_bytes"])
        path = api("points", self._point["id"], "volumes", str(index), "blocks")
        with open(raw, "wb") as file:
            file.truncate(grid.size_bytes)
            for blocks in grid.pieces(EXPORT_BLOCKS):
                tenant = self._options.tenant
                body = self._service.content(path, start=blocks.start, count=len(blocks), tenant=tenant)
                for frame in decode(body):
                    if frame.kind is not Kind.BLOCKS:
                        continue
                    payload = frame.verified(grid)
                    for position, block in enumerate(frame.indices):
                        at = position * grid.block_bytes
                        os.pwrite(file.fileno(), payload[at : at + grid.length(block)], grid.offset(block))
                show_share(self._options, "export", grid.span(blocks)[0] + grid.span(blocks)[1], grid.size_bytes)

    def _convert(self, raw: Path, made: Path) -> None:
        image_format, image_options = _BY_QEMU[self._options.format]
        more = [] if image_options is None else ["-o", image_options]
        command = ["qemu-img", "convert", "-f", "raw", "-O", image_format, *more, str(raw), str(made)]
        show_note(self._options, f"it is made a {self._options.format}")
        try:
            ended = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise ToolMissing("qemu-img is not installed", "apt-get install qemu-utils, or export as raw") from None
        finally:
            show_note(self._options, "")
        if ended.returncode:
            reason = ended.stderr.strip().splitlines()[-1]
            raise StorageError(f"qemu-img cannot make {self._options.format}: {reason}")

    def _show(self, done: int, size_bytes: int) -> None:
        show_share(self._options, f"it is made a {self._options.format}", done, size_bytes)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
