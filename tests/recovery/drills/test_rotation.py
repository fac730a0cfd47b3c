"""Whose turn it is: everybody's, inside the window, whoever waited longest first."""

from __future__ import annotations

from collections import Counter

import pytest

from agent.protocol.errors import UsageError
from recovery.drills.rotation import DrillSchedule, Target, Window, next_targets

HOUR = 3600.0
DAY = 24 * HOUR
NOON = 1000 * DAY + 12 * HOUR


def targets(**tried_at: float) -> list[Target]:
    return [Target(name=name, tried_at=at) for name, at in tried_at.items()]


def test_who_was_never_proven_comes_first_then_who_waited_longest() -> None:
    known = targets(fresh=NOON - HOUR, old=NOON - 3 * DAY, never=0.0, older=NOON - 4 * DAY)
    schedule = DrillSchedule(every_seconds=DAY, at_once=9)
    assert next_targets(schedule, known, [], NOON) == ["never", "older", "old"]


def test_no_more_run_side_by_side_than_allowed_and_none_twice() -> None:
    schedule = DrillSchedule(every_seconds=DAY, at_once=2)
    assert next_targets(schedule, targets(a=0, b=0, c=0), [], NOON) == ["a", "b"]
    assert next_targets(schedule, targets(a=0, b=0, c=0), ["a"], NOON) == ["b"]
    assert next_targets(schedule, targets(a=0, b=0, c=0), ["a", "b"], NOON) == []


@pytest.mark.parametrize(
    ("window", "inside", "outside"),
    [
        ("01:00-05:00", ["01:00", "04:59"], ["00:59", "05:00", "12:00"]),
        ("22:30-02:00", ["22:30", "23:59", "00:00", "01:59"], ["22:29", "02:00", "12:00"]),
    ],
)
def test_drills_begin_inside_the_window_only_also_over_midnight(
    window: str, inside: list[str], outside: list[str]
) -> None:
    parsed = Window.parse(window)
    assert str(parsed) == window

    def at(text: str) -> float:
        hours, minutes = map(int, text.split(":"))
        return 1000 * DAY + hours * HOUR + minutes * 60

    assert all(parsed.holds(at(text)) for text in inside)
    assert not any(parsed.holds(at(text)) for text in outside)


@pytest.mark.parametrize("text", ["", "1:00-5:00", "24:00-01:00", "01:00-01:00", "01:60-02:00", "01:00-05:00 "])
def test_a_window_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no window"):
        Window.parse(text)


def test_a_schedule_that_would_never_rest_or_never_begin_is_refused() -> None:
    with pytest.raises(UsageError, match="too many"):
        DrillSchedule(every_seconds=10)
    with pytest.raises(UsageError, match="at once"):
        DrillSchedule(every_seconds=DAY, at_once=0)


def test_over_weeks_everybody_has_their_turn_each_day_and_no_drill_drifts_out_of_the_window() -> None:
    schedule = DrillSchedule(every_seconds=DAY, window=Window.parse("01:00-05:00"))
    tried = dict.fromkeys("abcdefgh", 0.0)
    drilled: Counter[str] = Counter()
    now, running, ends_at = 1000 * DAY, "", 0.0
    while now < 1030 * DAY:
        if running and now >= ends_at:
            running = ""
        for name in next_targets(schedule, targets(**tried), [running] if running else [], now):
            tried[name], running, ends_at = now, name, now + 17 * 60
            drilled[name] += 1
        now += 60
    assert set(drilled.values()) == {30}


def test_when_the_window_is_too_short_for_all_nobody_is_left_out() -> None:
    schedule = DrillSchedule(every_seconds=DAY, window=Window.parse("01:00-02:00"))
    tried = dict.fromkeys("abcdefgh", 0.0)
    drilled: Counter[str] = Counter()
    for day in range(1000, 1024):
        for minutes in (0, 20, 40):
            (name,) = next_targets(schedule, targets(**tried), [], day * DAY + HOUR + minutes * 60)
            tried[name] = day * DAY + HOUR + minutes * 60
            drilled[name] += 1
    assert set(drilled.values()) == {9}
