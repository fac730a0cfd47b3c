"""A file of the site, read and written round the page cache where that is possible.

To fill the cache costs more processor time than to hash and pack what goes through it. What is no whole page, and what
lies on a filesystem without such I/O (tmpfs), goes through the cache; the kernel keeps both ways coherent.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import threading
from pathlib import Path

from agent.protocol.errors import StorageError
from recovery.sites.local.durable import storage_errors

SCRATCH_BYTES = 1 << 20
"""Of aligned memory that each thread has for what is not aligned."""
_PAGE = mmap.PAGESIZE
_PUNCH_HOLE = 0x1 | 0x2  # and keep the size: linux/falloc.h
_NO_HOLES = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)

_own = threading.local()


class DiskFile:
    """For any number of threads. Places and lengths are bytes. Raises StorageError, StorageFull."""

    def __init__(self, path: Path, *, writable: bool = False) -> None:
        self.path = path
        mode = os.O_RDWR if writable else os.O_RDONLY
        with storage_errors(f"open {path}"):
            self._cached = os.open(path, mode | os.O_CLOEXEC)
            try:
                self._direct = _open_direct(path, mode)
            except OSError:
                os.close(self._cached)
                raise
        self._open = True
        self._unsynced = False

    def fileno(self) -> int:
        return self._cached

    @property
    def size_bytes(self) -> int:
        return os.fstat(self._cached).st_size

    def read_into(self, place: int, into: memoryview) -> None:
        """Fill `into`; a page-aligned one, read from a page-aligned place, is filled by the disk itself."""
        self._check_open()
        with storage_errors(f"read {self.path}"):
            while into:
                count = self._read_direct(place, into) or os.preadv(self._cached, [into], place)
                if count == 0:
                    raise StorageError(f"{self.path} ends before the block at {place}", "restore it from a copy")
                place, into = place + count, into[count:]

    def write(self, place: int, data: memoryview) -> None:
        self._check_open()
        with storage_errors(f"write {self.path}"):
            while data:
                count = self._write_direct(place, data)
                if not count:
                    count = os.pwrite(self._cached, data[: -place % _PAGE or len(data)], place)
                place, data = place + count, data[count:]

    def read_cached(self, place: int, length: int) -> bytearray:
        """Of the file's own structures: what lies behind its end is zeros."""
        self._check_open()
        content = bytearray(length)
        view = memoryview(content)
        with storage_errors(f"read {self.path}"):
            while view and (count := os.preadv(self._cached, [view], place)):
                place, view = place + count, view[count:]
        return content

    def write_cached(self, place: int, content: bytes | bytearray | memoryview) -> None:
        view = memoryview(content)
        self._check_open()
        with storage_errors(f"write {self.path}"):
            while view:
                count = os.pwrite(self._cached, view, place)
                place, view = place + count, view[count:]

    def sync(self) -> None:
        """All that was written before is on stable storage when this returns."""
        self._check_open()
        if self._unsynced:  # the kernel tells it once, and then has forgotten what it could not write
            raise StorageError(f"what was written to {self.path} earlier did not reach the disk")
        self._unsynced = True
        with storage_errors(f"write {self.path} to the disk"):
            os.fdatasync(self._cached)
        self._unsynced = False

    def resize(self, size_bytes: int) -> None:
        self._check_open()
        with storage_errors(f"resize {self.path}"):
            os.ftruncate(self._cached, size_bytes)

    def punch(self, place: int, length: int) -> None:
        """Give the space of a range back, where the filesystem can. The range must not be needed any more."""
        self._check_open()
        libc = ctypes.CDLL(None, use_errno=True)
        done = libc.fallocate(self._cached, _PUNCH_HOLE, ctypes.c_int64(place), ctypes.c_int64(length))
        if done and (reason := ctypes.get_errno()) not in _NO_HOLES:
            with storage_errors(f"write {self.path}"):
                raise OSError(reason, os.strerror(reason))

    def close(self) -> None:
        """May be called twice."""
        if self._open:
            self._open = False
            for descriptor in {self._cached, self._direct} - {-1}:
                os.close(descriptor)

    def _check_open(self) -> None:
        if not self._open:
            raise StorageError(f"{self.path.name} was closed")

    def _read_direct(self, place: int, into: memoryview) -> int:
        """As much as one read gives; by way of aligned memory where `into` is not aligned. 0: not this way."""
        if self._direct < 0 or place % _PAGE:
            return 0
        try:
            return os.preadv(self._direct, [into], place)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        scratch = _scratch()
        length = min(len(into), SCRATCH_BYTES)
        try:
            count = os.preadv(self._direct, [scratch[: -(-length // _PAGE) * _PAGE]], place)
        except OSError as error:
            if error.errno != errno.EINVAL:  # the disk wants another alignment than ours
                raise
            return 0
        count = min(count, length)
        into[:count] = scratch[:count]
        return count

    def _write_direct(self, place: int, data: memoryview) -> int:
        """As many whole pages as one write takes. 0: not this way."""
        length = len(data) // _PAGE * _PAGE
        if self._direct < 0 or place % _PAGE or not length:
            return 0
        if not _is_aligned(data):  # not tried: a filesystem may find room for a write that it refuses, and take it back
            scratch = _scratch()
            length = min(length, SCRATCH_BYTES)
            scratch[:length] = data[:length]
            data = scratch
        try:
            return os.pwrite(self._direct, data[:length], place)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return 0


def _is_aligned(data: memoryview) -> bool:
    """Only memory that can be written to is looked at: the rest is Python's own, which is not aligned."""
    return not data.readonly and ctypes.addressof(ctypes.c_char.from_buffer(data)) % _PAGE == 0


def _scratch() -> memoryview:
    """This thread's own."""
    scratch: memoryview | None = getattr(_own, "scratch", None)
    if scratch is None:
        scratch = _own.scratch = memoryview(mmap.mmap(-1, SCRATCH_BYTES))
    return scratch


def _open_direct(path: Path, mode: int) -> int:
    """-1 where the filesystem knows no I/O round its cache."""
    try:
        return os.open(path, mode | os.O_DIRECT | os.O_CLOEXEC)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return -1
