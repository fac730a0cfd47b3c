"""Frames: whatever bytes come, they are decoded or refused, and what is taken is what its digests say."""

from __future__ import annotations

import contextlib
import struct

import atheris

with atheris.instrument_imports(include=["agent.protocol"]):
    from agent.protocol.brief import SHORT_BYTES, decode_brief
    from agent.protocol.digests import block_digest
    from agent.protocol.errors import BadFrame, DigestMismatch
    from agent.protocol.frames import HEADER_BYTES, MAX_BLOCKS, Kind, decode, frame_bytes, head_bytes
    from agent.protocol.grid import BlockGrid
    from agent.protocol.pages import read_offer_with_sums, read_patches

from blake3 import blake3

from tests.fuzz.fuzzing import fuzz

GRIDS = [BlockGrid(64 * 4096 + 512, 4096), BlockGrid(1 << 46, 1 << 16), BlockGrid(1 << 20, 1 << 20)]


def one_input(data: bytes) -> None:
    """The first byte says whether the seal is made right, so that more than the seal is tried."""
    if not data:
        return
    body = bytearray(data[1:])
    grid = GRIDS[(data[0] >> 1) % len(GRIDS)]
    if data[0] & 1:
        _seal(body)
    try:
        for frame in decode(body):
            assert len(frame.digests) == 32 * len(frame.indices)
            if frame.kind is Kind.PATCHES:
                assert all(patch.index < grid.count for patch in read_patches(frame, grid))
                continue
            if frame.kind is not Kind.BLOCKS:
                frame.check_against(grid)
                continue
            plain = frame.verified(grid)
            assert len(plain) == frame.plain_bytes == sum(map(grid.length, frame.indices))
            for position in range(len(frame.indices)):
                at = position * grid.block_bytes
                assert block_digest(plain[at : at + grid.block_bytes]) == frame.digest(position)
    except (BadFrame, DigestMismatch):
        pass
    with contextlib.suppress(BadFrame):
        frame_bytes(body[:HEADER_BYTES])
    with contextlib.suppress(BadFrame):
        offer, sums = read_offer_with_sums(body, grid)
        assert len(sums) == len(offer.indices)
    with contextlib.suppress(BadFrame):
        blocks, held = decode_brief(body, grid)
        assert blocks.stop <= grid.count
        assert len(held) == len(blocks) * SHORT_BYTES


def _seal(body: bytearray) -> None:
    """Make the first frame's seal right, if there is room for one."""
    if len(body) < HEADER_BYTES:
        return
    (count,) = struct.unpack_from("<I", body, 8)
    end = head_bytes(min(count, MAX_BLOCKS))
    if end <= len(body):
        body[end - 32 : end] = blake3(body[: end - 32]).digest()


if __name__ == "__main__":
    fuzz("frames", one_input)
