"""Pages: a changed block travels as those of its 4 KiB pages that changed, where the other side holds an older block.

Who gets the block (the receiver of a push, the agent that pulls) names the sum of each page that it holds, the lower
half of its CRC-32; the other side compares them with its own and sends the pages that differ. Sums are short, so one
changed page in 65,536 is missed: the digest of the whole block proves the result, and a block that fails it is sent
whole. A PATCHES frame's payload, before packing, is

    for each block one bit for each of its pages, lowest first, in block_bytes / 32768 bytes (at least one),
    then the pages whose bits are set, in order; only the last page of a volume may be short.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from agent.protocol.errors import BadFrame
from agent.protocol.frames import HEADER_BYTES, Frame, Kind, decode_single, frame_bytes, patches_frame
from agent.protocol.grid import BlockGrid

PAGE_BYTES = 4096
SUM_BYTES = 2

Buffer = bytes | bytearray | memoryview


def page_count(block_bytes: int) -> int:
    """How many pages a block of so many bytes has."""
    return -(-block_bytes // PAGE_BYTES)


def page_sums(block: Buffer) -> bytes:
    """The sums of a block's pages, one after the other."""
    # not BLAKE3: for so little data it lets go of the GIL, and waiting to get it back takes longer than the sum
    sums = [zlib.crc32(block[at : at + PAGE_BYTES]) & 0xFFFF for at in range(0, len(block), PAGE_BYTES)]
    return struct.pack(f"<{len(sums)}H", *sums)


def differing_pages(block: Buffer, other_sums: Buffer) -> list[int]:
    """The pages of `block` whose sums are not those of another block of the same length."""
    shape = f"<{len(other_sums) // SUM_BYTES}H"
    sums = zip(struct.unpack(shape, page_sums(block)), struct.unpack(shape, other_sums), strict=True)
    return [page for page, (own, other) in enumerate(sums) if own != other]


def read_offer_with_sums(body: Buffer, grid: BlockGrid) -> tuple[Frame, list[memoryview]]:
    """An OFFER, and for each of its blocks the sums of the pages of what is held, which follow it. Raises BadFrame."""
    view = memoryview(body)
    at = frame_bytes(view[:HEADER_BYTES])
    offer = decode_single(view[:at], Kind.OFFER)
    offer.check_against(grid)
    sums = []
    for index in offer.indices:
        end = at + page_count(grid.length(index)) * SUM_BYTES
        sums.append(view[at:end])
        at = end
    if at != len(view):
        raise BadFrame(f"the sums behind the offer should end after {at} bytes, not {len(view)}")
    return offer, sums


@dataclass(frozen=True, slots=True)
class Patch:
    """What changed in one block: the numbers of pages, rising, and their contents."""

    index: int
    digest: bytes
    pages: Sequence[int]
    contents: Sequence[Buffer]

    @classmethod
    def of(cls, index: int, digest: bytes, block: memoryview, pages: Sequence[int]) -> Patch:
        """Those `pages` of `block`, whose digest is `digest`; copies, so that the block's memory is free again."""
        return cls(index, digest, pages, [bytes(block[page * PAGE_BYTES : (page + 1) * PAGE_BYTES]) for page in pages])

    @property
    def size_bytes(self) -> int:
        return sum(map(len, self.contents))

    def apply(self, block: bytearray | memoryview) -> None:
        """Put the pages into an older block."""
        for page, content in zip(self.pages, self.contents, strict=True):
            block[page * PAGE_BYTES : page * PAGE_BYTES + len(content)] = content


def encode_patches(patches: Sequence[Patch], grid: BlockGrid, level: int) -> tuple[bytes, Buffer]:
    """A PATCHES frame as head and payload. The blocks' indices rise."""
    bits = b"".join(sum(1 << page for page in patch.pages).to_bytes(_bitmap_bytes(grid), "little") for patch in patches)
    plain = b"".join([bits, *(content for patch in patches for content in patch.contents)])
    return patches_frame([patch.index for patch in patches], b"".join(patch.digest for patch in patches), plain, level)


def read_patches(frame: Frame, grid: BlockGrid) -> Iterator[Patch]:
    """The patches of a PATCHES frame; their contents are views of its payload. Raises BadFrame."""
    if frame.kind is not Kind.PATCHES:
        raise BadFrame("the frame has no patches")
    frame.check_against(grid)
    plain = memoryview(frame.unpacked())
    width = _bitmap_bytes(grid)
    at = width * len(frame.indices)
    if at > len(plain):
        raise BadFrame("the patches end within their bitmaps")
    for position, index in enumerate(frame.indices):
        bits = int.from_bytes(plain[position * width : (position + 1) * width], "little")
        length = grid.length(index)
        if bits >> page_count(length):
            raise BadFrame(f"block {index} has not as many pages as are patched")
        pages = [page for page in range(page_count(length)) if bits >> page & 1]
        contents = []
        for page in pages:
            end = at + min(PAGE_BYTES, length - page * PAGE_BYTES)
            contents.append(plain[at:end])
            at = end
        if at > len(plain):
            raise BadFrame("the patches are cut short")
        yield Patch(index, frame.digest(position), pages, contents)
    if at != len(plain):
        raise BadFrame(f"{len(plain) - at} bytes follow the last patch")


def _bitmap_bytes(grid: BlockGrid) -> int:
    return max(1, grid.block_bytes // PAGE_BYTES // 8)
