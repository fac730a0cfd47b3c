"""The block grid: how a volume of any size is cut into blocks of equal size, the last one possibly shorter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from agent.protocol.errors import BadMessage

SECTOR_BYTES = 512
DEFAULT_BLOCK_BYTES = 64 << 10
MIN_BLOCK_BYTES = 4 << 10
MAX_BLOCK_BYTES = 1 << 20
MAX_VOLUME_BYTES = 64 << 40  # EBS ends at 64 TiB; so do we


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

    def covering(self, offset: int, length: int) -> range:
        """The indices of all blocks that [offset, offset + length) touches."""
        if length <= 0:
            return range(0)
        return range(offset // self.block_bytes, min(-(-(offset + length) // self.block_bytes), self.count))
