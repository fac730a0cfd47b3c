"""What Linux offers for disks and image files, beyond the stdlib: the one place of this package that knows its ioctls.

Every function takes an open descriptor and raises OSError; callers translate. All release the GIL while they wait.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import struct
from collections.abc import Iterator

PAGE_BYTES = 4096  # the alignment that O_DIRECT is content with on every disk we know

_BLKROGET = 0x125E
_BLKGETSIZE64 = 0x80081272
_BLKZEROOUT = 0x127F
_BLKGETDISKSEQ = 0x80081280
_FALLOC_FL_KEEP_SIZE, _FALLOC_FL_PUNCH_HOLE = 1, 2
# struct flock of every 64-bit Linux: type, whence, start, length (0: to the end), pid (0 for OFD locks)
_FLOCK = struct.Struct("hhqqi4x")

_libc = ctypes.CDLL(None, use_errno=True)


def aligned_buffer(size_bytes: int) -> memoryview:
    """A writable, page-aligned buffer of `size_bytes`, as O_DIRECT wants it; freed with its last view."""
    return memoryview(mmap.mmap(-1, size_bytes))


def is_aligned(buffer: memoryview) -> bool:
    """Whether O_DIRECT takes this memory. What cannot be written to is Python's own, which is not aligned."""
    return not buffer.readonly and ctypes.addressof(ctypes.c_char.from_buffer(buffer)) % PAGE_BYTES == 0


def open_direct(path: str) -> int:
    """A descriptor that reads and writes round the page cache; -1 where the filesystem cannot (tmpfs)."""
    try:
        return os.open(path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        return -1


def device_size_bytes(descriptor: int) -> int:
    """The size of an open block device as the kernel has it now."""
    size: int = struct.unpack("Q", fcntl.ioctl(descriptor, _BLKGETSIZE64, bytes(8)))[0]
    return size


def device_is_read_only(descriptor: int) -> bool:
    """Whether an open block device refuses writes (`blockdev --setro`, write protection)."""
    return bool(struct.unpack("i", fcntl.ioctl(descriptor, _BLKROGET, bytes(4)))[0])


def disk_sequence(descriptor: int) -> int | None:
    """The number that the kernel gave the disk, or the medium in it, when it came; none comes twice in one boot. Of a
    partition its disk's. None: a kernel before 5.15 does not count them (and disks differ in how they say so)."""
    try:
        number: int = struct.unpack("Q", fcntl.ioctl(descriptor, _BLKGETDISKSEQ, bytes(8)))[0]
    except OSError:
        return None
    return number


def zero_device(descriptor: int, offset: int, length: int) -> None:
    """Zero a range of whole sectors of a block device (BLKZEROOUT); the page cache follows."""
    fcntl.ioctl(descriptor, _BLKZEROOUT, struct.pack("QQ", offset, length))


def punch_hole(descriptor: int, offset: int, length: int) -> None:
    """Make a range of a file a hole that reads as zeros; the file's size stays."""
    mode = _FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE
    if _libc.fallocate(descriptor, mode, ctypes.c_int64(offset), ctypes.c_int64(length)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def lock_exclusively(descriptor: int) -> bool:
    """Take a write lock on a whole file until the descriptor is closed; False when somebody else holds a lock.

    An open-file-description lock, not flock(2): QEMU locks its images with these, so each sees the other.
    """
    request = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, request)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def read_up_to(descriptor: int, buffer: memoryview, offset: int) -> int:
    """Fill `buffer` from `offset`, looping over short reads; returns the bytes read, fewer only at the end.

    A descriptor that is O_DIRECT takes any buffer and offset: what is not aligned goes through an aligned copy.
    """
    done = 0
    while done < len(buffer):
        try:
            count = os.preadv(descriptor, [buffer[done:]], offset + done)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return done + _read_unaligned(descriptor, buffer[done:], offset + done)
        if count == 0:
            break
        done += count
    return done


def _read_unaligned(descriptor: int, buffer: memoryview, offset: int) -> int:
    """One O_DIRECT read of all pages that the range touches, then a copy of the part that was asked for."""
    start = offset - offset % PAGE_BYTES
    end = -(-(offset + len(buffer)) // PAGE_BYTES) * PAGE_BYTES
    pages = aligned_buffer(end - start)
    filled = 0
    while filled < len(pages):
        count = os.preadv(descriptor, [pages[filled:]], start + filled)
        filled += count
        if count == 0 or count % 512:  # the end of the device, which need not be a page's
            break
    wanted = pages[offset - start : min(filled, offset - start + len(buffer))]
    buffer[: len(wanted)] = wanted
    return len(wanted)


def data_ranges(descriptor: int, stop: int, start: int = 0) -> Iterator[tuple[int, int]]:
    """(offset, length) of everything between two offsets of a file that is not a hole, in order."""
    offset = start
    while offset < stop:
        try:
            begin = os.lseek(descriptor, offset, os.SEEK_DATA)
            end = os.lseek(descriptor, begin, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                return
            raise
        if begin >= stop:
            return
        yield begin, min(end, stop) - begin
        offset = end
