from __future__ import annotations

import datetime

import pytest

from agent.pacing.rate import Limit, parse_hours, parse_rate
from agent.protocol.errors import UsageError


@pytest.mark.parametrize(
    ("text", "bytes_a_second"),
    [
        ("20mbit", 2_500_000),
        ("20Mbit/s", 2_500_000),
        ("1.5 gbit", 187_500_000),
        ("2MB/s", 2_000_000),
        ("2MiB/s", 2 << 20),
        ("512 KiB/s", 512 << 10),
        ("256kbit", 32_000),
        ("64000bps", None),
    ],
)
def test_bits_and_bytes_are_told_apart(text: str, bytes_a_second: int | None) -> None:
    if bytes_a_second is None:
        with pytest.raises(UsageError, match="the least is 256kbit"):
            parse_rate(text)
    else:
        assert parse_rate(text) == bytes_a_second


@pytest.mark.parametrize("text", ["", "20", "20m", "fast", "-2MB/s", "2 MB/min", "1e9bit", "nan bit"])
def test_what_could_mean_two_things_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match="20mbit"):
        parse_rate(text)


@pytest.mark.parametrize(
    ("hours", "within", "without"),
    [
        ("08:00-18:00", ["08:00", "12:30", "17:59"], ["07:59", "18:00", "00:00"]),
        ("22:00-6:00", ["22:00", "23:59", "00:00", "05:59"], ["06:00", "12:00", "21:59"]),
    ],
)
def test_a_limit_holds_within_its_hours_and_not_outside(hours: str, within: list[str], without: list[str]) -> None:
    limit = Limit(1_000_000, parse_hours(hours))
    assert [limit.at(datetime.time.fromisoformat(moment)) for moment in within] == [1_000_000] * len(within)
    assert [limit.at(datetime.time.fromisoformat(moment)) for moment in without] == [None] * len(without)


@pytest.mark.parametrize("text", ["", "8-18", "08:00", "25:00-26:00", "08:00-08:00", "08:00 - 18:00x"])
def test_what_are_no_hours_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match="08:00-18:00"):
        parse_hours(text)
