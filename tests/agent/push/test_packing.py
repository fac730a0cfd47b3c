"""How hard to pack and how much to send at once."""

from __future__ import annotations

from agent.pieces import PIECE_BYTES
from agent.push.packing import DEFAULT_LEVEL, FIRST_BATCH_BYTES, LEAST_BATCH_BYTES, batch_bytes_for, level_for


def test_the_slower_the_network_the_harder_we_pack() -> None:
    rates = [1e9, 100e6, 20e6, 1e6, 1e3]
    levels = [level_for(rate) for rate in rates]
    assert levels == sorted(levels) and levels[0] == DEFAULT_LEVEL < levels[-1]
    assert level_for(None) == DEFAULT_LEVEL


def test_a_request_is_as_large_as_half_a_second_brings_within_limits() -> None:
    assert batch_bytes_for(None) == FIRST_BATCH_BYTES
    assert batch_bytes_for(1e6) == 500_000
    assert batch_bytes_for(1e3) == LEAST_BATCH_BYTES
    assert batch_bytes_for(1e12) == PIECE_BYTES
