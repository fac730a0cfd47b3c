"""By a simulated clock: what is sent when, to the byte."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.pacing.bucket import BURST_SECONDS, TokenBucket, Turns


def sent_until(bucket: TokenBucket, end: float, size_bytes: int, now: float = 0.0) -> int:
    """How much somebody sends who always wants to."""
    sent = 0
    while (now := now + bucket.wait_seconds(now)) < end:
        bucket.take(size_bytes, now)
        sent += size_bytes
    return sent


@given(
    rate=st.integers(32_000, 10**9),
    seconds=st.floats(1, 1000),
    sizes=st.lists(st.integers(1, 1 << 22), min_size=1, max_size=20),
)
def test_over_any_time_no_more_passes_than_the_rate_allows(rate: int, seconds: float, sizes: list[int]) -> None:
    bucket = TokenBucket(rate, 0.0)
    now, sent, turn = 0.0, 0, 0
    while (now := now + bucket.wait_seconds(now)) < seconds and turn < 2000:
        bucket.take(sizes[turn % len(sizes)], now)
        sent += sizes[turn % len(sizes)]
        turn += 1
    assert sent <= rate * (now + BURST_SECONDS) * 1.001 + max(sizes)


def test_who_always_wants_to_send_gets_the_whole_rate() -> None:
    assert sent_until(TokenBucket(1_000_000, 0.0), 100.0, 16_384) == pytest.approx(100_000_000, rel=0.01)


def test_a_line_that_was_quiet_for_an_hour_may_send_a_tenth_of_a_second_at_once() -> None:
    bucket = TokenBucket(1_000_000, 0.0)
    assert sent_until(bucket, 3600.0 + 1e-9, 1000, 3600.0) == pytest.approx(1_000_000 * BURST_SECONDS, abs=1001)


def test_a_new_rate_holds_from_now_on() -> None:
    bucket = TokenBucket(1_000_000, 0.0)
    sent_until(bucket, 10.0, 1000)
    bucket.set_rate(2_000_000, 10.0)
    assert sent_until(bucket, 20.0, 1000, 10.0) == pytest.approx(20_000_000, rel=0.02)
    bucket.set_rate(None, 20.0)
    assert bucket.wait_seconds(20.0) == 0


def test_without_a_limit_nobody_waits_and_nothing_is_owed_later() -> None:
    bucket = TokenBucket(None, 0.0)
    bucket.take(1 << 40, 0.0)
    bucket.set_rate(1000, 1.0)
    assert bucket.wait_seconds(1.0) == 0


def served(turns: Turns, wants: dict[str, int], count: int, waiting: dict[str, int]) -> dict[str, int]:
    """Bytes that each taker gets in `count` turns: each has so many requests `waiting`, of so many bytes (`wants`)."""
    tickets = {}
    for taker, size_bytes in wants.items():
        for _ in range(waiting[taker]):
            tickets[turns.ask(taker, size_bytes)] = taker
    got = dict.fromkeys(wants, 0)
    for _ in range(count):
        first = turns.first
        assert first is not None
        taker = tickets.pop(first)
        got[taker] += wants[taker]
        tickets[turns.ask(taker, wants[taker])] = taker
        turns.leave(first)
    return got


def test_volumes_get_the_same_share_however_many_requests_each_has_waiting() -> None:
    got = served(Turns(), {"a": 1000, "b": 1000}, 1000, {"a": 5, "b": 1})
    assert got["a"] == pytest.approx(got["b"], rel=0.02)


def test_small_requests_are_not_pushed_aside_by_large_ones() -> None:
    got = served(Turns(), {"large": 64_000, "small": 1000}, 6500, {"large": 3, "small": 1})
    assert got["large"] == pytest.approx(got["small"], rel=0.05)


def test_who_comes_late_is_not_owed_what_was_sent_before() -> None:
    turns = Turns()
    old = [turns.ask("old", 1000) for _ in range(1000)]
    for ticket in old[:900]:
        turns.leave(ticket)
    new = [turns.ask("new", 1000) for _ in range(100)]
    order = []
    while turns.first is not None:
        order.append("new" if turns.first in new else "old")
        turns.leave(turns.first)
    assert 9 <= order[:20].count("new") <= 11


def test_who_gives_up_leaves_no_gap() -> None:
    turns = Turns()
    tickets = [turns.ask("a", 1), turns.ask("b", 1), turns.ask("c", 1)]
    turns.leave(tickets[1])
    turns.leave(tickets[0])
    assert turns.first == tickets[2]
    turns.leave(tickets[2])
    assert turns.first is None
