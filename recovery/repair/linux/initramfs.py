"""Drivers in the boot archive (initramfs): what is missing is added behind it, from the image's own modules.

The kernel unpacks archives that follow one another, later files over earlier ones; so what the image's own tools made
stays byte for byte, and none of the guest's programs has to run. udev in the archive then loads what it finds.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import stat
import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol

import zstandard

from recovery.repair import cpio
from recovery.repair.draft import Draft
from recovery.repair.record import Finding
from recovery.repair.target import Bus, Target

_DRIVERS: dict[Bus, tuple[str, ...]] = {
    Bus.VIRTIO: ("virtio_pci", "virtio_blk"),
    Bus.VIRTIO_SCSI: ("virtio_pci", "virtio_scsi", "sd_mod"),
    Bus.NVME: ("nvme",),
    Bus.AHCI: ("ahci", "sd_mod"),
    Bus.XEN: ("xen_blkfront",),
}
_ARCHIVES = ("/boot/initrd.img-{}", "/boot/initramfs-{}.img", "/boot/initrd-{}", "/boot/initramfs-{}")
_ON_ESP = "esp:/*/{}/initrd*"  # systemd's kernel-install
_INDEXES = (
    "modules.dep",
    "modules.dep.bin",
    "modules.alias",
    "modules.alias.bin",
    "modules.softdep",
    "modules.builtin",
    "modules.builtin.bin",
    "modules.builtin.alias.bin",
    "modules.order",
)
_MAX_UNPACKED_BYTES = 2 << 30
_MAX_WINDOW_BYTES = 1 << 28
_STEP_BYTES = 4096  # so little that even a bomb's step unpacks to less than 150 MB
_MAX_ADDED_BYTES = 64 << 20
_NOT_UNPACKED = (
    cpio.BadArchive,
    OSError,
    EOFError,
    ValueError,
    MemoryError,
    zlib.error,
    lzma.LZMAError,
    zstandard.ZstdError,
)
_ADDED = gzip.compress(b"", 6, mtime=0)[:10]
_VERSION = re.compile(r"[\w.+~-]+")


def repair(draft: Draft, target: Target) -> Iterator[Finding]:
    """Looks at every kernel that has a boot archive: which of them is started is the boot loader's affair."""
    found: list[Finding] = []
    ready = seen = 0
    for folder in draft.glob("/lib/modules/*/modules.builtin"):
        version = folder.split("/")[3]
        if not _VERSION.fullmatch(version):
            continue
        for path in (*(place.format(version) for place in _ARCHIVES), *draft.glob(_ON_ESP.format(version))):
            archive = draft.read(path)
            if archive is not None:
                here = list(_repair_one(draft, path, archive, version, _DRIVERS[target.bus]))
                seen += 1
                ready += all(finding.repaired for finding in here)
                found += here
    if not seen and draft.glob("/boot/init*"):
        yield Finding("warn", "none of the boot archives belongs to a kernel whose modules are there")
    for finding in found:
        # one kernel that can drive the disk will do
        yield replace(finding, level="warn") if ready and not finding.repaired else finding


def _repair_one(draft: Draft, path: str, archive: bytes, version: str, drivers: tuple[str, ...]) -> Iterator[Finding]:
    modules = f"/lib/modules/{version}"
    built_in = {_name(line) for line in draft.text(f"{modules}/modules.builtin").split()}
    table = _dependencies(draft.text(f"{modules}/modules.dep"))
    soft = _soft_dependencies(draft.text(f"{modules}/modules.softdep"))
    present = contents(archive)
    wanted: dict[str, str] = {}
    for driver in drivers:
        if driver in built_in or driver in present:
            continue
        if driver not in table:
            yield Finding(
                "stop", f"kernel {version} has no driver {driver}", "boot it on another bus, or with another kernel"
            )
            return
        for needed in _closure(driver, table, soft):
            if _name(needed) not in present:
                wanted[_name(needed)] = needed
    if not wanted:
        return
    what = f"{path} lacks {', '.join(driver for driver in drivers if driver in wanted)}"
    entries = [cpio.folder(f"lib/modules{below}") for below in ("", f"/{version}")]
    made = {entry.name for entry in entries}
    for needed in wanted.values():
        content = draft.read(f"{modules}/{needed}")
        if content is None:
            yield Finding("stop", f"{what}, and {modules}/{needed} is not there", "reinstall that kernel")
            return
        parts = needed.split("/")
        for depth in range(1, len(parts)):
            name = f"lib/modules/{version}/{'/'.join(parts[:depth])}"
            if name not in made:
                made.add(name)
                entries.append(cpio.folder(name))
        entries.append(cpio.Entry(f"lib/modules/{version}/{needed}", stat.S_IFREG | 0o644, content))
    for index in _INDEXES:
        content = draft.read(f"{modules}/{index}")
        if content is not None:
            entries.append(cpio.Entry(f"lib/modules/{version}/{index}", stat.S_IFREG | 0o644, content))
    packed = cpio.pack(entries)
    if len(packed) > _MAX_ADDED_BYTES:
        yield Finding("stop", f"{what}, and these would add {len(packed)} bytes", "rebuild the archive on the server")
        return
    if "CONFIG_RD_GZIP=y" in draft.text(f"/boot/config-{version}"):
        packed = gzip.compress(packed, 6, mtime=0)
        packed += bytes(-len(packed) % 512)
    padding = bytes(-len(archive) % 4)  # the next archive begins at a multiple of four
    draft.append(path, len(archive), padding + packed, f"drivers for other hardware: {', '.join(sorted(wanted))}")
    yield Finding("stop", what, repaired=True)


def contents(archive: bytes) -> set[str]:
    """The kernel's names of all modules in a boot archive. What cannot be unpacked holds, for all we know, none."""
    found: set[str] = set()
    rest = archive.lstrip(b"\0")
    while rest:
        try:
            stream = _Unpacked(rest)
            for name, mode in cpio.names(stream):
                if stat.S_ISREG(mode) and re.search(r"/modules/.*\.ko(\.\w+)?$", f"/{name}"):
                    found.add(_name(name))
            rest = stream.rest().lstrip(b"\0")
        except _NOT_UNPACKED:
            added = rest.rfind(_ADDED, 1)  # behind what cannot be read may be what a repair added
            rest = rest[added:] if added > 0 else b""
    return found


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


class _Unpacked:
    """One archive, compressed or not, at the beginning of `content`; it does not unpack without end."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._at = 0
        self._decompressor = None if content.startswith(b"0707") else _decompressor(content)
        self._unpacked = io.BytesIO()
        self._left_bytes = _MAX_UNPACKED_BYTES

    def read(self, length: int, /) -> bytes:
        if self._decompressor is None:
            self._at += length
            return self._content[self._at - length : self._at]
        while not (read := self._unpacked.read(length)) and self._unpack_more():
            pass
        return read

    def rest(self) -> bytes:
        """What follows it."""
        if self._decompressor is None:
            return self._content[self._at :]
        while self._unpack_more():
            pass
        return self._decompressor.unused_data + self._content[self._at :]

    def _unpack_more(self) -> bool:
        if self._decompressor is None or self._decompressor.eof or self._at >= len(self._content):
            return False
        more = self._decompressor.decompress(self._content[self._at : self._at + _STEP_BYTES])
        self._at += _STEP_BYTES
        self._unpacked = io.BytesIO(more)
        self._left_bytes -= len(more)
        if self._left_bytes < 0:
            raise cpio.BadArchive("it unpacks to more than any boot archive does")
        return True


def _decompressor(content: bytes) -> _Decompressor:
    if content.startswith(b"\x1f\x8b"):
        return zlib.decompressobj(wbits=31)
    if content.startswith((b"\xfd7zXZ", b"\x5d\0\0")):
        return lzma.LZMADecompressor(memlimit=_MAX_WINDOW_BYTES)
    if content.startswith(b"BZh"):
        return bz2.BZ2Decompressor()
    if content.startswith(b"\x28\xb5\x2f\xfd"):
        return zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES).decompressobj()
    raise cpio.BadArchive("compressed in a way that is not known here")


def _name(path: str) -> str:
    """The kernel's own name of a module's file."""
    return path.rpartition("/")[2].partition(".ko")[0].replace("-", "_")


def _dependencies(text: str) -> dict[str, tuple[str, list[str]]]:
    """Name -> (its file, the files that it needs), as depmod found them."""
    table = {}
    for line in text.splitlines():
        file, _, needed = line.partition(":")
        if re.fullmatch(r"(kernel|updates|extra|weak-updates)/[\w./+-]+", file) and ".." not in file:
            table[_name(file)] = (file, needed.split())
    return table


def _soft_dependencies(text: str) -> dict[str, list[str]]:
    soft = {}
    for name, before in re.findall(r"^softdep (\S+) pre: ([\w -]+?)(?:post:.*)?$", text, re.MULTILINE):
        soft[name.replace("-", "_")] = [other.replace("-", "_") for other in before.split()]
    return soft


def _closure(driver: str, table: dict[str, tuple[str, list[str]]], soft: dict[str, list[str]]) -> list[str]:
    """The files of a driver and of all it needs, each after what it needs."""
    found: dict[str, None] = {}
    waiting = [driver]
    while waiting:
        name = waiting.pop()
        if name in table and table[name][0] not in found:
            file, needed = table[name]
            found[file] = None
            waiting += [_name(other) for other in needed] + soft.get(name, [])
    return list(reversed(found))
