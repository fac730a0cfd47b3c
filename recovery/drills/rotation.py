"""Whose turn it is to be drilled: everybody's, the one that waited longest first, inside a daily window. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from agent.protocol.errors import UsageError

LEAST_SECONDS = 600.0
ON_TIME_SHARE = 0.9
"""So early is on time: if not, each day's drill would begin a little later than the day before's."""
_WINDOW = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")
_DAY_MINUTES = 24 * 60


@dataclass(frozen=True, slots=True)
class Window:
    """Minutes of the day, UTC; one that ends before it begins goes over midnight."""

    first_minute: int
    last_minute: int

    @classmethod
    def parse(cls, text: str) -> Window:
        """`01:00-05:00`. Raises UsageError."""
        found = _WINDOW.fullmatch(text)
        if found is None or found[1] + found[2] == found[3] + found[4]:
            raise UsageError(f"{text!r} is no window of a day", "say when drills may begin, in UTC, like 01:00-05:00")
        hours = [int(part) for part in found.groups()]
        return cls(hours[0] * 60 + hours[1], hours[2] * 60 + hours[3])

    def __str__(self) -> str:
        return "-".join(f"{minute // 60:02}:{minute % 60:02}" for minute in (self.first_minute, self.last_minute))

    def holds(self, now: float) -> bool:
        """Is this instant (seconds since 1970) inside?"""
        at = datetime.fromtimestamp(now, UTC)
        minute = at.hour * 60 + at.minute
        length = (self.last_minute - self.first_minute) % _DAY_MINUTES
        return (minute - self.first_minute) % _DAY_MINUTES < length


@dataclass(frozen=True, slots=True, kw_only=True)
class DrillSchedule:
    """Each target is drilled once in `every_seconds`, `at_once` of them side by side; `window` None: at any time."""

    every_seconds: float
    window: Window | None = None
    at_once: int = 1

    def __post_init__(self) -> None:
        if self.every_seconds < LEAST_SECONDS:
            raise UsageError(f"drills each {self.every_seconds:g} s are too many", f"use {LEAST_SECONDS:g} s or more")
        if self.at_once < 1:
            raise UsageError(f"{self.at_once} drills at once are none", "no drills: understudy drills schedule off")

    def is_open(self, now: float) -> bool:
        """May drills begin at this instant (seconds since 1970)?"""
        return self.window is None or self.window.holds(now)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A plan, or a server that is in none. `tried_at`: when the one of its servers that waits longest was last put to
    the proof, whatever came of it, in seconds since 1970 (0: never): who fails waits its turn like all others."""

    name: str
    tried_at: float


def next_targets(schedule: DrillSchedule, targets: Sequence[Target], running: Collection[str], now: float) -> list[str]:
    """The targets whose drills are to begin now, longest unproven first. `running`: those of scheduled drills under
    way."""
    if not schedule.is_open(now):
        return []
    due = [
        target
        for target in targets
        if target.name not in running and now - target.tried_at >= schedule.every_seconds * ON_TIME_SHARE
    ]
    due.sort(key=lambda target: (target.tried_at, target.name))
    return [target.name for target in due[: max(schedule.at_once - len(running), 0)]]
