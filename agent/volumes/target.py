"""A target volume: the disk or image file that a pull makes equal to a recovery point."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from agent.protocol.errors import SourceError, TargetError
from agent.protocol.grid import SECTOR_BYTES
from agent.volumes import linux
from agent.volumes.topology import in_use

_ZEROS = bytes(1 << 20)
_NO_ZEROING = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.ENOTTY)


class TargetVolume:
    """An open target of `size_bytes`, held exclusively; use it as a context manager, or `close()` it.

    It is written round the page cache where that is possible, by way of an aligned copy of what is not aligned: filling
    the cache costs more than the copy. Image files are read through the cache, which may have them; devices never. All
    methods may be called from several threads, and release the GIL while they wait.
    """

    def __init__(self, path: str, size_bytes: int, is_device: bool, writer: int, reader: int) -> None:
        self.path = path
        self.size_bytes = size_bytes
        self.is_device = is_device
        self._writer = writer
        self._reader = reader
        self._direct = linux.open_direct(path)
        self._aligned = threading.local()

    @classmethod
    def open(cls, path: str | os.PathLike[str], size_bytes: int) -> Self:
        """Open a block device, or an image file, which is made (sparse) when there is none and cut when it is longer.

        A longer disk stays as it is beyond `size_bytes`. Raises TargetError, and has changed nothing, for a disk or
        file that is smaller, mounted, attached, locked or otherwise in use, the running system's own, read-only, or
        no disk at all; also when there is no room to make the file.
        """
        name = os.fspath(path)
        with _translated(name, "cannot be opened for writing"):
            try:
                mode = Path(name).stat().st_mode
            except FileNotFoundError:
                return cls._create(name, size_bytes)
            if stat.S_ISBLK(mode):
                return cls._open_device(name, size_bytes)
            if stat.S_ISREG(mode):
                return cls._open_file(name, size_bytes)
            kind = "a directory" if stat.S_ISDIR(mode) else "no disk and no file"
            raise TargetError(f"{name} is {kind}", "name a whole disk, a partition or a disk image file")

    @classmethod
    def _create(cls, name: str, size_bytes: int) -> Self:
        if name.startswith("/dev/"):  # a mistyped disk must not become a file in memory
            raise TargetError(f"{name} does not exist", "look at the disks: understudy-agent inventory")
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, size_bytes)
            _check_lock(name, descriptor)
        except BaseException:
            os.close(descriptor)
            Path(name).unlink()
            raise
        return cls(name, size_bytes, False, descriptor, descriptor)

    @classmethod
    def _open_file(cls, name: str, size_bytes: int) -> Self:
        _check_free(name)
        descriptor = os.open(name, os.O_RDWR | os.O_CLOEXEC)
        try:
            _check_lock(name, descriptor)
            found_bytes = os.fstat(descriptor).st_size
            if found_bytes:  # an empty file is as good as none
                _check_size(name, found_bytes, size_bytes)
            os.ftruncate(descriptor, size_bytes)
        except BaseException:
            os.close(descriptor)
            raise
        return cls(name, size_bytes, False, descriptor, descriptor)

    @classmethod
    def _open_device(cls, name: str, size_bytes: int) -> Self:
        _check_free(name)
        reader = os.open(name, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        try:
            _check_size(name, linux.device_size_bytes(reader), size_bytes)
            _check_writable(name, reader)
            # O_EXCL on a block device: nobody can mount it or build on it meanwhile, and nobody has.
            writer = os.open(name, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
        except BaseException:
            os.close(reader)
            raise
        return cls(name, size_bytes, True, writer, reader)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill all of `buffer` with what is at `offset`. Raises TargetError."""
        self._check_range(offset, len(buffer))
        with _translated(self.path, f"cannot be read at offset {offset}"):
            count = linux.read_up_to(self._reader, buffer, offset)
        if count < len(buffer):
            raise TargetError(f"{self.path} ends at offset {offset + count}, before its {self.size_bytes} bytes")

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write all of `data` at `offset`; on the medium only after flush(). Raises TargetError."""
        self._check_range(offset, len(data))
        view = memoryview(data)
        with _translated(self.path, f"cannot be written at offset {offset}"):
            if self._direct >= 0 and offset % linux.PAGE_BYTES == 0 and len(view) % linux.PAGE_BYTES == 0:
                view = view if linux.is_aligned(view) else self._copied(view)
                while view:
                    count = os.pwrite(self._direct, view, offset)
                    view, offset = view[count:], offset + count
            while view:
                count = os.pwrite(self._writer, view, offset)
                view, offset = view[count:], offset + count

    def read_back(self, offset: int, length: int) -> memoryview:
        """What the medium itself holds after a write; valid until this thread's next call. Raises TargetError."""
        self._check_range(offset, length)
        into = self._memory(length)
        with _translated(self.path, f"cannot be read back at offset {offset}"):
            if self._direct < 0:
                os.fdatasync(self._writer)
                os.posix_fadvise(self._reader, offset, length, os.POSIX_FADV_DONTNEED)
            count = linux.read_up_to(self._direct if self._direct >= 0 else self._reader, into, offset)
        if count < length:
            raise TargetError(f"{self.path} ends at offset {offset + count}, before its {self.size_bytes} bytes")
        return into

    def _copied(self, data: memoryview) -> memoryview:
        """The data in this thread's own aligned buffer, which O_DIRECT needs."""
        buffer = self._memory(len(data))
        buffer[:] = data
        return buffer

    def _memory(self, length: int) -> memoryview:
        buffer: memoryview | None = getattr(self._aligned, "buffer", None)
        if buffer is None or len(buffer) < length:
            buffer = self._aligned.buffer = linux.aligned_buffer(length)
        return buffer[:length]

    def zero(self, offset: int, length: int) -> None:
        """Make a range read as zeros: a hole in a file, by the device itself where it can. Raises TargetError."""
        self._check_range(offset, length)
        if length == 0:
            return
        with _translated(self.path, f"cannot be zeroed at offset {offset}"):
            try:
                if not self.is_device:
                    linux.punch_hole(self._writer, offset, length)
                    return
                if offset % SECTOR_BYTES == 0 and length % SECTOR_BYTES == 0:
                    linux.zero_device(self._writer, offset, length)
                    return
            except OSError as error:
                if error.errno not in _NO_ZEROING:
                    raise
        for start in range(offset, offset + length, len(_ZEROS)):
            self.write(start, memoryview(_ZEROS)[: min(len(_ZEROS), offset + length - start)])

    def flush(self) -> None:
        """Bring all that was written to the medium. Raises TargetError for any write that failed on the way."""
        with _translated(self.path, "did not take all that was written to it"):
            os.fsync(self._writer)

    def data_ranges(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """(offset, length) of what may hold data within a range, in order; the rest are holes, which read as zeros.

        Writing while iterating is fine: what is written ahead may or may not be among the ranges. Raises TargetError.
        """
        if self.is_device:
            yield offset, length
            return
        with _translated(self.path, "does not tell where its data is"):
            yield from linux.data_ranges(self._reader, offset + length, offset)

    def close(self) -> None:
        """Let go of the target, without a flush; more than once is harmless."""
        descriptors = {self._writer, self._reader, self._direct} - {-1}
        self._writer = self._reader = self._direct = -1
        for descriptor in descriptors:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_range(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size_bytes:
            raise ValueError(f"{length} bytes at {offset} are not inside {self.path} ({self.size_bytes} bytes)")


def _check_free(name: str) -> None:
    try:
        reason = in_use(name)
    except SourceError as error:
        raise TargetError(error.message, error.hint) from error
    if reason is not None:
        raise TargetError(
            f"{name} may not be overwritten: {reason}",
            "name another disk; or unmount it, or start this machine from a rescue system",
        )


def _check_lock(name: str, descriptor: int) -> None:
    if not linux.lock_exclusively(descriptor):
        raise TargetError(f"{name} is locked by another program", "shut down what uses it: a virtual machine?")


def _check_writable(name: str, descriptor: int) -> None:
    if linux.device_is_read_only(descriptor):
        raise TargetError(f"{name} is read-only", f"blockdev --setrw {name}, or remove its write protection")


def _check_size(name: str, found_bytes: int, wanted_bytes: int) -> None:
    if found_bytes < wanted_bytes:
        raise TargetError(
            f"{name} is too small: it has {found_bytes} bytes, the point needs {wanted_bytes}",
            "name a disk of at least that size, or a file that does not exist yet",
        )


@contextlib.contextmanager
def _translated(name: str, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        hint = "check the disk (dmesg, smartctl); what was written is harmless, pull again"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            hint = "make room where it lies, then pull again: only what differs is fetched"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            hint = "run as root, and name a disk that may be written"
        elif error.errno == errno.EBUSY:
            hint = "unmount it, and stop what uses it (lsblk, fuser)"
        elif error.errno in (errno.ENOENT, errno.ENOTDIR):
            hint = "make its folder first"
        raise TargetError(f"{name} {what}: {error.strerror}", hint) from error
