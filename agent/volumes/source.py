"""A source volume: a whole disk, a partition or a raw disk image file, opened for reading and nothing else."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from agent.protocol.errors import NotADisk, SourceError, SourceReadError, SourceResized
from agent.protocol.grid import SECTOR_BYTES
from agent.volumes.blockdevices import disk_folder_number
from agent.volumes.linux import aligned_buffer, data_ranges, device_size_bytes, disk_sequence, read_up_to

__all__ = ["SourceVolume", "aligned_buffer"]

# Formats whose bytes are not the disk's: replicated as they are, the replica could never boot.
_WRAPPED_FORMATS = {b"QFI\xfb": "qcow2", b"KDMV": "VMDK", b"vhdxfile": "VHDX", b"conectix": "VHD"}
_NO_SUCH_PATH = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
_NO_MEDIUM = (errno.ENXIO, errno.ENODEV, errno.ENOMEDIUM)


class SourceVolume:
    """An open source volume; use it as a context manager, or `close()` it.

    `path` is where it was opened; a symlink is followed once, at open. `size_bytes` is the size at open. `is_device`
    tells a block device from an image file.

    Block devices are read with O_DIRECT: their page cache goes stale under a mounted filesystem, also under a freeze.
    Image files are read through the page cache, which is always right: a loop device on top either writes through that
    same cache, or (direct-io) round it, and then the kernel drops the pages it overwrote before the write is complete.
    """

    def __init__(self, path: str, descriptor: int, size_bytes: int, is_device: bool) -> None:
        self.path = path
        self.size_bytes = size_bytes
        self.is_device = is_device
        self._descriptor = descriptor

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open what `path` names, mounted or not.

        Raises NotADisk for a path that is missing, no block device or regular file, empty, not a whole number of
        sectors, or an image in a format that is not raw; SourceError when it may not or cannot be opened.
        """
        name = os.fspath(path)
        try:
            # Looked at before it is opened: opening a FIFO waits, and opening some devices does things.
            mode = Path(name).stat().st_mode
            _check_kind(name, mode)
            is_device = stat.S_ISBLK(mode)
            flags = os.O_RDONLY | os.O_CLOEXEC | (os.O_DIRECT if is_device else 0)
            descriptor = os.open(name, flags)
        except OSError as error:
            raise _cannot_open(name, error) from error
        try:
            size_bytes = _size_bytes(descriptor, is_device)
            _check_size(name, size_bytes, is_device)
            if not is_device:
                _check_format(name, descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        except OSError as error:
            os.close(descriptor)
            raise _cannot_open(name, error) from error
        except BaseException:
            os.close(descriptor)
            raise
        return cls(name, descriptor, size_bytes, is_device)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill all of `buffer` (bytes, writable) with what is at `offset`. Thread-safe; releases the GIL.

        Buffers of `aligned_buffer` at page-aligned offsets are fast; any other works, by way of a copy.
        Raises SourceReadError, naming path and offset, or SourceResized when the volume is not as long any more.
        """
        if offset < 0 or offset + len(buffer) > self.size_bytes:
            raise ValueError(f"{len(buffer)} bytes at {offset} are not inside {self.path} ({self.size_bytes} bytes)")
        try:
            count = read_up_to(self._descriptor, buffer, offset)
        except OSError as error:
            self.check_unchanged()
            raise SourceReadError(
                f"{self.path} cannot be read in the {len(buffer)} bytes at offset {offset}: {error.strerror}"
            ) from error
        if count < len(buffer):
            self.check_unchanged()
            raise SourceReadError(f"{self.path} ends at offset {offset + count}, before its {self.size_bytes} bytes")

    def data_ranges(self) -> Iterator[tuple[int, int]]:
        """(offset, length) of what may hold data, in order; the rest are holes, which read as zeros.

        A device is one range. The holes of an image file that is written meanwhile are those of the moment.
        Raises SourceReadError.
        """
        if self.is_device:
            yield 0, self.size_bytes
            return
        try:
            yield from data_ranges(self._descriptor, self.size_bytes)
        except OSError as error:
            raise SourceReadError(f"{self.path} does not tell where its data is: {error.strerror}") from error

    def check_unchanged(self) -> None:
        """Raise SourceResized when the size is not what it was at open, grown or shrunk; SourceReadError if unknown."""
        try:
            now_bytes = _size_bytes(self._descriptor, self.is_device)
        except OSError as error:
            raise SourceReadError(f"{self.path} does not tell its size: {error.strerror}") from error
        if now_bytes != self.size_bytes:
            verb = "grew" if now_bytes > self.size_bytes else "shrank"
            raise SourceResized(f"{self.path} {verb} from {self.size_bytes} to {now_bytes} bytes while it was read")

    def read_up_to(self, offset: int, length: int) -> bytes:
        """What is there of these bytes: none behind the end, none of what cannot be read."""
        buffer = aligned_buffer(max(length, 1))[:length]
        with contextlib.suppress(OSError):
            return bytes(buffer[: read_up_to(self._descriptor, buffer, offset)])
        return b""

    @property
    def number(self) -> tuple[int, int]:
        """Major and minor of the block device; of an image file that of nothing."""
        found = os.fstat(self._descriptor).st_rdev
        return os.major(found), os.minor(found)

    def is_same_device_as(self, other: SourceVolume) -> bool:
        return self.is_device and other.is_device and self.number == other.number

    @property
    def attachment(self) -> str | None:
        """Two volumes with the same one are the very same device: attached once, in one boot, whatever is on it by now.
        None where the system does not tell, and for image files."""
        if not self.is_device:
            return None
        try:
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            sequence = disk_sequence(self._descriptor)
            if sequence is None:
                sequence = disk_folder_number(*self.number)
        except OSError:
            return None
        return None if sequence is None else f"{boot} {sequence} {':'.join(map(str, self.number))}"

    def close(self) -> None:
        """Let go of the volume; more than once is harmless."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _size_bytes(descriptor: int, is_device: bool) -> int:
    return device_size_bytes(descriptor) if is_device else os.fstat(descriptor).st_size


def _check_kind(path: str, mode: int) -> None:
    if stat.S_ISBLK(mode) or stat.S_ISREG(mode):
        return
    if stat.S_ISDIR(mode):
        raise NotADisk(f"{path} is a directory")
    if stat.S_ISCHR(mode):
        raise NotADisk(f"{path} is a character device, not a disk")
    raise NotADisk(f"{path} is neither a block device nor a file")


def _check_size(path: str, size_bytes: int, is_device: bool) -> None:
    if size_bytes == 0:
        raise NotADisk(f"{path} has no medium" if is_device else f"{path} is an empty file")
    if size_bytes % SECTOR_BYTES:
        raise NotADisk(f"{path} has {size_bytes} bytes, which is not a whole number of {SECTOR_BYTES}-byte sectors")


def _check_format(path: str, descriptor: int) -> None:
    head = os.pread(descriptor, 8, 0)
    for magic, name in _WRAPPED_FORMATS.items():
        if head.startswith(magic):
            raise NotADisk(
                f"{path} is a {name} image, not the disk's own bytes",
                "name a raw image: qemu-img convert -O raw, or attach it with qemu-nbd and name that device",
            )


def _cannot_open(path: str, error: OSError) -> SourceError:
    if error.errno in _NO_SUCH_PATH:
        return NotADisk(f"{path}: {error.strerror}")
    if error.errno in _NO_MEDIUM:
        return NotADisk(f"{path} has no medium: {error.strerror}")
    if error.errno in (errno.EACCES, errno.EPERM):
        return SourceError(f"{path} may not be read: {error.strerror}", "run as root")
    return SourceError(f"{path} cannot be opened: {error.strerror}", "check the disk and the messages of dmesg")
