"""The block grid: how a volume of any size is cut into blocks of equal size, the last one possibly shorter."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from agent.protocol.errors import BadMessage

SECTOR_BYTES = 512
DEFAULT_BLOCK_BYTES = 64 << 10
MIN_BLOCK_BYTES = 4 << 10
MAX_BLOCK_BYTES = 1 << 20
MAX_VOLUME_BYTES = 64 << 40  # EBS ends at 64 TiB; so do we
MAX_BLOCK_COUNT = 1 << 30  # 64 TiB in 64 KiB blocks: a digest map of 32 GiB


@dataclass(frozen=True, slots=True)
class BlockGrid:
    """A volume of `size_bytes` in blocks of `block_bytes` (a power of two).

    Raises BadMessage for sizes no volume can have.
    """

    size_bytes: int
    block_bytes: int = DEFAULT_BLOCK_BYTES

    def __post_init__(self) -> None:
        if not 0 < self.size_bytes <= MAX_VOLUME_BYTES:
            raise BadMessage(f"a volume of {self.size_bytes} bytes is outside 1 byte to 64 TiB")
        if self.size_bytes % SECTOR_BYTES:
            raise BadMessage(f"a volume of {self.size_bytes} bytes is not a whole number of 512-byte sectors")
        size = self.block_bytes
        if not MIN_BLOCK_BYTES <= size <= MAX_BLOCK_BYTES or size & (size - 1):
            raise BadMessage(f"blocks of {size} bytes are not a power of two from 4 KiB to 1 MiB")
        if self.count > MAX_BLOCK_COUNT:
            raise BadMessage(f"{self.count} blocks are more than {MAX_BLOCK_COUNT}", "use larger blocks")

    @property
    def count(self) -> int:
        """How many blocks there are."""
        return -(-self.size_bytes // self.block_bytes)

    def offset(self, index: int) -> int:
        """Where block `index` begins, in bytes."""
        return index * self.block_bytes

    def length(self, index: int) -> int:
        """How many bytes block `index` has; only the last may be short."""
        return min(self.block_bytes, self.size_bytes - index * self.block_bytes)

    def pieces(self, blocks: int) -> Iterator[range]:
        """The whole grid as ranges of at most `blocks` block indices, in order."""
        for start in range(0, self.count, blocks):
            yield range(start, min(start + blocks, self.count))

    def span(self, blocks: range) -> tuple[int, int]:
        """Offset and length in bytes of consecutive blocks."""
        offset = self.offset(blocks.start)
        return offset, min(self.offset(blocks.stop), self.size_bytes) - offset

    def covering(self, ranges: Iterable[tuple[int, int]], most: int) -> Iterator[range]:
        """The blocks that byte ranges (offset, length) touch, each once, rising, in pieces of at most `most` blocks."""
        done = 0
        for offset, length in sorted(ranges):
            if length <= 0:
                continue
            stop = min(-(-(offset + length) // self.block_bytes), self.count)
            for start in range(max(offset // self.block_bytes, done), stop, most):
                yield range(start, min(start + most, stop))
            done = max(done, stop)


def consecutive(indices: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Rising indices as runs [start, stop) of positions in `indices` whose blocks follow one another."""
    start = 0
    for at in range(1, len(indices) + 1):
        if at == len(indices) or indices[at] != indices[at - 1] + 1:
            yield start, at
            start = at
