"""Brief offers: the beginnings of digests."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.protocol.brief import SHORT_BYTES, beginnings, decode_brief, encode_brief
from agent.protocol.errors import BadFrame
from agent.protocol.frames import MAX_BLOCKS
from agent.protocol.grid import BlockGrid

GRID = BlockGrid(100 * 4096, 4096)
HUGE = BlockGrid(64 << 40)


@given(st.integers(0, 90), st.lists(st.binary(min_size=32, max_size=32), max_size=10))
def test_what_is_offered_is_read(first: int, digests: list[bytes]) -> None:
    body = encode_brief(first, b"".join(digests))
    blocks, held = decode_brief(body, GRID)
    assert blocks == range(first, first + len(digests))
    assert held == b"".join(digest[:SHORT_BYTES] for digest in digests) == beginnings(b"".join(digests))
    assert len(body) == 8 + 8 * len(digests)


@pytest.mark.parametrize(
    ("body", "grid"),
    [
        (b"", GRID),
        (bytes(7), GRID),
        (bytes(8 + 9), GRID),
        (encode_brief(100, bytes(32)), GRID),
        (encode_brief(101, b""), GRID),
        (struct.pack("<Q", (1 << 64) - 1), GRID),
        (bytes(8 + SHORT_BYTES * (MAX_BLOCKS + 1)), HUGE),
    ],
)
def test_what_does_not_fit_is_refused(body: bytes, grid: BlockGrid) -> None:
    with pytest.raises(BadFrame):
        decode_brief(body, grid)
    assert decode_brief(bytes(8 + SHORT_BYTES * MAX_BLOCKS), HUGE)[0] == range(MAX_BLOCKS)


@given(st.binary(max_size=100))
def test_no_body_does_more_than_be_refused(body: bytes) -> None:
    try:
        blocks, held = decode_brief(body, GRID)
    except BadFrame:
        return
    assert blocks.stop <= GRID.count and len(held) == len(blocks) * SHORT_BYTES
