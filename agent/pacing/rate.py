"""Rates as people write them, and when a limit holds. Pure: the time is given."""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass

from agent.protocol.errors import UsageError

LEAST_BYTES_A_SECOND = 256_000 // 8
"""Below this one batch of blocks takes so long that a receiver may take the push for dead."""

_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*([kKMGmg]?i?)(bit|bps|B)(?:/s)?")
_FACTORS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
_HOURS = re.compile(r"(\d{1,2}:\d{2})-(\d{1,2}:\d{2})")


@dataclass(frozen=True, slots=True)
class Hours:
    """A part of each day, by the server's local time: from `begin` on, before `end`. It may pass midnight."""

    begin: datetime.time
    end: datetime.time

    def __contains__(self, moment: datetime.time) -> bool:
        if self.begin < self.end:
            return self.begin <= moment < self.end
        return moment >= self.begin or moment < self.end

    def __str__(self) -> str:
        return f"{self.begin:%H:%M}-{self.end:%H:%M}"


@dataclass(frozen=True, slots=True)
class Limit:
    """At most so many bytes a second; only within `between`, if that is given."""

    bytes_a_second: int
    between: Hours | None = None

    def at(self, moment: datetime.time) -> int | None:
        """What holds at this time of the day; None: no limit."""
        return self.bytes_a_second if self.between is None or moment in self.between else None

    def __str__(self) -> str:
        rate = f"{self.bytes_a_second * 8 / 10**6:g} Mbit/s ({self.bytes_a_second / 10**6:g} MB/s)"
        return f"{rate}, between {str(self.between).replace('-', ' and ')}" if self.between else rate


def parse_rate(text: str) -> int:
    """Bytes a second of `20mbit`, `2MB/s`, `512 KiB/s`. Raises UsageError."""
    found = _RATE.fullmatch(text.strip())
    if found is None:
        raise UsageError(f"{text!r} is no rate", "write bits as 20mbit, bytes as 2MB/s or 2MiB/s, or none")
    number, prefix, unit = found.groups()
    rate = float(number) * _FACTORS[prefix.lower()] / (1 if unit == "B" else 8)
    if rate < LEAST_BYTES_A_SECOND:
        raise UsageError(f"a push cannot go on at {text}", f"the least is {LEAST_BYTES_A_SECOND * 8 // 1000}kbit")
    return int(rate)


def parse_hours(text: str) -> Hours:
    """`08:00-18:00`. Raises UsageError."""
    found = _HOURS.fullmatch(text.strip())
    try:
        begin, end = (datetime.time.fromisoformat(part.zfill(5)) for part in found.groups()) if found else (None, None)
    except ValueError:
        begin = end = None
    if begin is None or end is None or begin == end:
        raise UsageError(f"{text!r} are no hours of the day", "write them as 08:00-18:00")
    return Hours(begin, end)
