"""A disk whose power can be cut: what was written to it and not flushed is there afterwards, or not, as chance has it.

A filesystem's image lies behind QEMU's blklogwrites, which writes down every write and every flush in their order. A
cut at any place of that log gives the image that a real disk may be left with there: all that came before the last
flush, and of what came after it any part. One run gives as many cuts as one likes, and the service notices nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import struct
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.faults.machine import loop_device, mounted
from tests.patience import PATIENCE_SECONDS

DISK_BYTES = 2 << 30
FILESYSTEMS = {"ext4": ("mkfs.ext4", "-q", "-E", "nodiscard"), "xfs": ("mkfs.xfs", "-q", "-K")}
_SUPER = struct.Struct("<QQQI")
_ENTRY = struct.Struct("<QQQQ")  # sector, sectors, flags, bytes of data
_MAGIC = 0x6A736677736872
_FLUSH, _FUA, _DISCARD = 1, 2, 4


@dataclass(frozen=True)
class Entry:
    offset: int
    length: int
    flags: int
    data_at: int
    """Where in the log the data lies."""

    @property
    def writes(self) -> bool:
        return self.length > 0 and not self.flags & _FLUSH


class LoggedDisk:
    """`folder` gets the image and the log."""

    def __init__(self, folder: Path) -> None:
        self._raw, self._log = folder / "disk.img", folder / "disk.log"
        self.export = folder / "disk"
        self._entries: list[Entry] = []
        self._read_to = 0

    @contextlib.contextmanager
    def attached(self) -> Iterator[Path]:
        """As a file that can be put behind a loop device."""
        for path, size in ((self._raw, DISK_BYTES), (self._log, 0), (self.export, 0)):
            with open(path, "wb") as file:
                file.truncate(size)
        logged = {
            "driver": "blklogwrites",
            "node-name": "disk",
            "file": {"driver": "file", "filename": str(self._raw), "cache": {"no-flush": True}},
            "log": {"driver": "file", "filename": str(self._log), "cache": {"no-flush": True}},
        }
        export = f"fuse,id=disk,node-name=disk,mountpoint={self.export},writable=on"
        daemon = subprocess.Popen(["qemu-storage-daemon", "--blockdev", json.dumps(logged), "--export", export])
        try:
            limit = time.monotonic() + PATIENCE_SECONDS
            while self.export.stat().st_size != DISK_BYTES:
                assert daemon.poll() is None, "QEMU has no FUSE here"
                assert time.monotonic() < limit
                time.sleep(0.01)
            yield self.export
        finally:
            daemon.terminate()
            daemon.wait()

    def reached(self) -> int:
        """How many entries the log has by now."""
        return len(self._parsed())

    def flushes(self, since: int) -> list[int]:
        """The places right after a flush, from `since` on: between two of them everything may be lost."""
        return [n + 1 for n, entry in enumerate(self._parsed()) if n >= since and entry.flags & (_FLUSH | _FUA)]

    def cut(self, at: int, rng: random.Random, image: Path) -> None:
        """Write the image that a power cut after `at` entries may leave."""
        entries = self._parsed()[:at]
        flushed = max((n for n, entry in enumerate(entries) if entry.flags & _FLUSH), default=-1)
        chance = rng.choice([0.0, 0.2, 0.5, 0.8, 1.0])
        with open(self._log, "rb") as log, open(image, "wb") as file:
            file.truncate(DISK_BYTES)
            for n, entry in enumerate(entries):
                if entry.writes and (n < flushed or entry.flags & _FUA or rng.random() < chance):
                    file.seek(entry.offset)
                    if entry.flags & _DISCARD:
                        _punch(file.fileno(), entry)
                    else:
                        file.write(os.pread(log.fileno(), entry.length, entry.data_at))

    def _parsed(self) -> list[Entry]:
        with open(self._log, "rb") as log:
            magic, version, _count, sector = _SUPER.unpack(log.read(_SUPER.size))
            assert (magic, version) == (_MAGIC, 1)
            self._read_to = self._read_to or sector
            size = os.fstat(log.fileno()).st_size
            while self._read_to + sector <= size:
                head = os.pread(log.fileno(), _ENTRY.size, self._read_to)
                first, count, flags, _ = _ENTRY.unpack(head)
                if not any((first, count, flags)):
                    break  # not written yet
                length = count * sector
                held = 0 if flags & _DISCARD else length  # QEMU leaves the bytes of data at 0
                if self._read_to + sector + held > size:
                    break
                self._entries.append(Entry(first * sector, length, flags, self._read_to + sector))
                self._read_to += sector + held
        return self._entries


def _punch(descriptor: int, entry: Entry) -> None:
    zeros = bytes(1 << 20)
    at, end = entry.offset, entry.offset + entry.length
    while at < end:
        part = os.pread(descriptor, min(len(zeros), end - at), at)
        if part.strip(b"\0"):
            os.pwrite(descriptor, bytes(len(part)), at)
        at += len(part)


@contextlib.contextmanager
def filesystem(image: Path, folder: Path, *mkfs: str) -> Iterator[Path]:
    """`image` mounted at `folder`; made first by `mkfs`, where that is given."""
    with loop_device(image) as device:
        if mkfs:
            subprocess.run([*mkfs, device], check=True, capture_output=True)
        with mounted(device, folder) as mount:
            yield mount
