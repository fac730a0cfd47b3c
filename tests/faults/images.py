"""Images of disks, made and changed from a seed."""

from __future__ import annotations

import os
import random
from pathlib import Path

BLOCK = 64 << 10


def make_image(path: Path, rng: random.Random, size_bytes: int = 8 << 20) -> Path:
    """Some blocks random, some repetitive, some holes; a size that need not be whole blocks."""
    with open(path, "wb") as file:
        file.truncate(size_bytes)
        for offset in range(0, size_bytes, BLOCK):
            length = min(BLOCK, size_bytes - offset)
            kind = rng.randrange(3)
            if kind < 2:
                file.seek(offset)
                file.write(rng.randbytes(length) if kind else (b"understudy %9d;" % offset * BLOCK)[:length])
    return path


def change_image(path: Path, rng: random.Random, changes: int = 12) -> None:
    """Overwrite, zero and copy stretches that keep to no block's edge."""
    with open(path, "r+b") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        for _ in range(changes):
            length = min(rng.choice([1, 512, 4096, BLOCK, 3 * BLOCK + 5, 1 << 20]), size_bytes)
            offset = rng.randrange(size_bytes - length + 1)
            kind = rng.randrange(4)
            data = rng.randbytes(length) if kind < 2 else bytes(length)
            if kind == 3:
                file.seek(rng.randrange(size_bytes - length + 1))
                data = file.read(length)
            file.seek(offset)
            file.write(data)


def resize_image(path: Path, rng: random.Random) -> None:
    """A disk of another size, larger or smaller, in whole sectors."""
    os.truncate(path, max(512, path.stat().st_size + rng.randrange(-2000, 2001) * 512))
