"""What the disk alone takes for a pull, round every cache: data read from one file, written to another, and read back.

python -m bench.disk IMAGE FOLDER: copies as much of the image as it has data to a file in FOLDER, and prints the
seconds of the rest.
"""

from __future__ import annotations

import mmap
import os
import sys
import threading
import time
from pathlib import Path

from bench.plain import data_of

THREADS = 4
PART_BYTES = 4 << 20


def main(image: str, folder: Path) -> None:
    source = os.open(image, os.O_RDONLY)
    data_bytes = sum(stop - offset for offset, stop in data_of(source)) // PART_BYTES * PART_BYTES
    origin, target = (
        os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600) for name in ("origin", "target")
    )
    for descriptor in (origin, target):
        os.truncate(descriptor, data_bytes)
    memory = memoryview(mmap.mmap(-1, PART_BYTES))
    for offset in range(0, data_bytes, PART_BYTES):
        os.preadv(source, [memory], offset)
        os.pwrite(origin, memory, offset)
    os.sync()
    began = time.monotonic()
    workers = [
        threading.Thread(target=_carry, args=(origin, target, range(first, data_bytes, THREADS * PART_BYTES)))
        for first in range(0, THREADS * PART_BYTES, PART_BYTES)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    os.fsync(target)
    print(time.monotonic() - began)


def _carry(origin: int, target: int, offsets: range) -> None:
    memory = memoryview(mmap.mmap(-1, PART_BYTES))
    for offset in offsets:
        os.preadv(origin, [memory], offset)
        os.pwrite(target, memory, offset)
        os.preadv(target, [memory], offset)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
