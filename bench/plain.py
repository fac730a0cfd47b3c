"""The plainest reader there is: 64 KiB blocks, BLAKE3 of each, holes skipped. A program: plain.py PATH data|threads

`threads`: two of them, each with every other MiB. Prints the bytes it read.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator

from blake3 import blake3

BLOCK_BYTES = 64 << 10
PART_BYTES = 1 << 20


def data_of(descriptor: int) -> Iterator[tuple[int, int]]:
    """(offset, stop) of the parts of at most PART_BYTES that the file's data lies in."""
    size_bytes = os.fstat(descriptor).st_size
    offset = 0
    while offset < size_bytes:
        try:
            data = os.lseek(descriptor, offset, os.SEEK_DATA)
        except OSError:  # nothing but a hole up to the end
            return
        stop = os.lseek(descriptor, data, os.SEEK_HOLE)
        offset = data // BLOCK_BYTES * BLOCK_BYTES
        while offset < stop:
            yield offset, min(offset + PART_BYTES, stop)
            offset += PART_BYTES


def read(path: str, threads: int) -> int:
    """Returns how many bytes were read."""
    descriptor = os.open(path, os.O_RDONLY)
    parts = list(data_of(descriptor))

    def work(own: list[tuple[int, int]]) -> None:
        buffer = bytearray(PART_BYTES)
        view = memoryview(buffer)
        for offset, stop in own:
            count = os.preadv(descriptor, [view[: stop - offset]], offset)
            for at in range(0, count, BLOCK_BYTES):
                blake3(view[at : min(at + BLOCK_BYTES, count)]).digest()

    workers = [threading.Thread(target=work, args=(parts[number::threads],)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    os.close(descriptor)
    return sum(stop - offset for offset, stop in parts)


if __name__ == "__main__":
    print(read(sys.argv[1], 2 if sys.argv[2] == "threads" else 1))
