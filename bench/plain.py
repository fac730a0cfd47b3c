"""The plainest reader there is: one thread, 64 KiB blocks, BLAKE3 of each. Run as a program: plain.py PATH data|whole

`data` skips the holes of the file (SEEK_DATA); `whole` reads everything. Prints the bytes it read.
"""

from __future__ import annotations

import os
import sys

from blake3 import blake3

BLOCK_BYTES = 64 << 10


def read(path: str, *, skip_holes: bool) -> int:
    """Returns how many bytes were read."""
    descriptor = os.open(path, os.O_RDONLY)
    size_bytes = os.fstat(descriptor).st_size
    buffer = bytearray(BLOCK_BYTES)
    view = memoryview(buffer)
    read_bytes = offset = 0
    while offset < size_bytes:
        stop = size_bytes
        if skip_holes:
            try:
                data = os.lseek(descriptor, offset, os.SEEK_DATA)
            except OSError:  # nothing but a hole up to the end
                break
            stop = os.lseek(descriptor, data, os.SEEK_HOLE)
            offset = max(offset, data // BLOCK_BYTES * BLOCK_BYTES)
        while offset < stop:
            count = os.preadv(descriptor, [buffer], offset)
            blake3(view[:count]).digest()
            offset += count
            read_bytes += count
    os.close(descriptor)
    return read_bytes


if __name__ == "__main__":
    print(read(sys.argv[1], skip_holes=sys.argv[2] == "data"))
