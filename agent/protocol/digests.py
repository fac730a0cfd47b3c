"""Digests: BLAKE3 of each block, and one root over a whole volume.

A block of zeros has the digest of 32 zero bytes instead of its BLAKE3, so that a sparse volume's map is sparse too.
The root is a tree of two levels, so that a small change costs a small amount of hashing:

    segment[k] = BLAKE3(key context "understudy 2026 segment v1", digests of blocks 1024k .. 1024k + 1023)
    root       = BLAKE3(key context "understudy 2026 root v1", size_bytes u64le, block_bytes u32le, all segments)
"""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path
from typing import Self

from blake3 import blake3

from agent.protocol.grid import MAX_BLOCK_BYTES, BlockGrid

DIGEST_BYTES = 32
ZERO_DIGEST = bytes(DIGEST_BYTES)
SEGMENT_BLOCKS = 1024
_SEGMENT_CONTEXT = "understudy 2026 segment v1"
_ROOT_CONTEXT = "understudy 2026 root v1"
_ROOT_HEADER = struct.Struct("<QI")
_ZEROS = bytes(MAX_BLOCK_BYTES)


def block_digest(block: bytes | bytearray | memoryview) -> bytes:
    """The digest of one block, 32 bytes; a block of zeros gives ZERO_DIGEST."""
    # Two bytes decide for nearly all blocks that are not zero; comparing copies is quicker than comparing views.
    if not block[0] and not block[-1] and bytes(block) == (_ZEROS[: len(block)]):
        return ZERO_DIGEST
    return blake3(block).digest()


def segment_digest(digests: bytes | bytearray) -> bytes:
    """The digest of a segment, from those of its blocks."""
    return blake3(digests, derive_key_context=_SEGMENT_CONTEXT).digest()


class DigestMap:
    """The digests of all blocks of one volume, 32 bytes each, in memory or in a file that is mapped.

    A new map says that every block is zero. Reading and writing entries is not locked: callers do not share blocks.
    """

    def __init__(self, grid: BlockGrid, buffer: bytearray | mmap.mmap | None = None) -> None:
        self.grid = grid
        self._buffer = bytearray(grid.count * DIGEST_BYTES) if buffer is None else buffer
        if len(self._buffer) != grid.count * DIGEST_BYTES:
            raise ValueError(f"a map of {grid.count} blocks cannot have {len(self._buffer)} bytes")

    @classmethod
    def open(cls, path: Path, grid: BlockGrid) -> Self:
        """Map `path`, made (or cut, or grown with zero digests) to fit `grid`. Raises OSError.

        Its space is taken now: a write to a mapped hole on a full disk would be a SIGBUS, and no error to be caught."""
        with open(path, "a+b") as file:
            file.truncate(grid.count * DIGEST_BYTES)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, grid.count * DIGEST_BYTES)
            return cls(grid, mmap.mmap(file.fileno(), grid.count * DIGEST_BYTES))

    def __getitem__(self, index: int) -> bytes:
        if not 0 <= index < self.grid.count:
            raise IndexError(index)
        return bytes(self._buffer[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES])

    def __setitem__(self, index: int, digest: bytes) -> None:
        if not 0 <= index < self.grid.count or len(digest) != DIGEST_BYTES:
            raise IndexError(index)
        self._buffer[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES] = digest

    def run(self, blocks: range) -> bytes:
        """The digests of consecutive blocks, one after the other."""
        return bytes(self._buffer[blocks.start * DIGEST_BYTES : blocks.stop * DIGEST_BYTES])

    def set_run(self, blocks: range, digests: bytes) -> None:
        """Replace the digests of consecutive blocks."""
        if len(digests) != len(blocks) * DIGEST_BYTES or blocks.stop > self.grid.count:
            raise IndexError(blocks)
        self._buffer[blocks.start * DIGEST_BYTES : blocks.stop * DIGEST_BYTES] = digests

    def root(self) -> bytes:
        """The root digest over the whole volume, 32 bytes."""
        root = blake3(derive_key_context=_ROOT_CONTEXT)
        root.update(_ROOT_HEADER.pack(self.grid.size_bytes, self.grid.block_bytes))
        for blocks in self.grid.pieces(SEGMENT_BLOCKS):
            root.update(segment_digest(self.run(blocks)))
        return root.digest()

    def segments(self, first: int, most: int) -> bytes:
        """The digests of segments from `first` on, so many at the most; nothing behind the last."""
        starts = range(first * SEGMENT_BLOCKS, self.grid.count, SEGMENT_BLOCKS)[:most]
        ends = (min(start + SEGMENT_BLOCKS, self.grid.count) for start in starts)
        return b"".join(segment_digest(self.run(range(start, end))) for start, end in zip(starts, ends, strict=True))

    def flush(self) -> None:
        """Write a mapped file's changes to its medium."""
        if isinstance(self._buffer, mmap.mmap):
            self._buffer.flush()

    def close(self) -> None:
        """Release a mapped file; the map is not usable afterwards."""
        if isinstance(self._buffer, mmap.mmap):
            self._buffer.close()
