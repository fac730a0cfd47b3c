"""Which recovery points a run boots. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

from agent.protocol.errors import NotFound, UsageError
from agent.protocol.messages import Point

LATEST = "latest"
LATEST_APPLICATION = "latest-application"
LATEST_BOOTABLE = "latest-bootable"
NEWEST_KINDS = (LATEST, LATEST_APPLICATION, LATEST_BOOTABLE)
MIN_PREFIX_CHARACTERS = 4

_WANTED: dict[str, tuple[Callable[[Point], bool], str]] = {
    LATEST: (lambda point: True, ""),
    LATEST_APPLICATION: (lambda point: point.consistency == "application", "application-consistent "),
    LATEST_BOOTABLE: (lambda point: point.bootable is True, "proven bootable "),
}


def choose_point(server: str, points: Sequence[Point], choice: str) -> Point:
    """The point that an operator means: `latest`, `latest-application`, `latest-bootable`, an id or its unique
    beginning, or an ISO time (UTC unless it says otherwise): the newest at or before it. `points` are newest first.

    Raises NotFound, or UsageError when several are meant."""
    if not points:
        raise NotFound(f"there is no recovery point of {server}", f"make one: understudy take {server}")
    if choice in _WANTED:
        return _eligible(server, points, choice)[0]
    exact = [point for point in points if point.id == choice]
    started = [point for point in points if len(choice) >= MIN_PREFIX_CHARACTERS and point.id.startswith(choice)]
    if exact or len(started) == 1:
        return (exact or started)[0]
    try:
        instant = _instant(choice)
    except ValueError:
        if started:
            ids = ", ".join(point.id for point in started[:5])
            raise UsageError(f"{len(started)} points of {server} begin with {choice!r}: {ids}", "give more") from None
        hint = f"see: understudy points {server}; or use `latest`, or a time like 2026-01-31T14:30:00Z"
        raise NotFound(f"there is no point {choice!r} of {server}", hint) from None
    return _at_or_before(server, points, instant)[0]


def choose_points(points: Mapping[str, Sequence[Point]], choice: str, within_seconds: float | None) -> dict[str, Point]:
    """A point for each server (by name). `within_seconds`: of one instant, the newest there is: no two of them are
    further apart than this. Raises as choose_point, and NotFound when there is no such instant."""
    bare = next((server for server, its_points in points.items() if not its_points), None)
    if bare is not None and len(points) > 1:
        hint = f"make one: understudy take {bare}; or boot the others: --without {bare}"
        raise NotFound(f"there is no recovery point of {bare}", hint)
    if within_seconds is None:
        return {server: choose_point(server, its_points, choice) for server, its_points in points.items()}
    candidates = {server: _candidates(server, its_points, choice) for server, its_points in points.items()}
    times = {
        server: [datetime.fromisoformat(point.taken_at).timestamp() for point in its_points]
        for server, its_points in candidates.items()
    }
    at = dict.fromkeys(candidates, 0)
    while True:
        # No instant after the oldest of these plus the tolerance will do: the others go back to it.
        oldest = min(at, key=lambda server: times[server][at[server]])
        latest_allowed = times[oldest][at[oldest]] + within_seconds
        moved = False
        for server, its_times in times.items():
            while its_times[at[server]] > latest_allowed:
                at[server] += 1
                moved = True
                if at[server] == len(its_times):
                    raise NotFound(
                        f"there is no instant for which all servers have points within {within_seconds:g} s:"
                        f" {server} has none as old as {candidates[oldest][at[oldest]].taken_at}, the one of {oldest}",
                        "allow more: one_instant_within_seconds; or replicate more often",
                    )
        if not moved:
            return {server: its_points[at[server]] for server, its_points in candidates.items()}


def _candidates(server: str, points: Sequence[Point], choice: str) -> Sequence[Point]:
    """Newest first, never empty: what may be used where several servers have to agree on an instant."""
    if choice in _WANTED and points:
        return _eligible(server, points, choice)
    try:
        return _at_or_before(server, points, _instant(choice)) if points else [choose_point(server, points, choice)]
    except ValueError:
        return [choose_point(server, points, choice)]


def _eligible(server: str, points: Sequence[Point], choice: str) -> Sequence[Point]:
    is_wanted, words = _WANTED[choice]
    eligible = [point for point in points if is_wanted(point)]
    if not eligible:
        hint = f"see: understudy points {server}; or use another: --point latest"
        raise NotFound(f"there is no {words}point of {server}", hint)
    return eligible


def _at_or_before(server: str, points: Sequence[Point], instant: datetime) -> Sequence[Point]:
    older = [point for point in points if _instant(point.taken_at) <= instant]
    if not older:
        oldest = points[-1]
        when = instant.isoformat()
        raise NotFound(f"{server} has no point as old as {when}", f"the oldest is {oldest.id} of {oldest.taken_at}")
    return older


def _instant(text: str) -> datetime:
    instant = datetime.fromisoformat(text)
    return instant if instant.tzinfo else instant.replace(tzinfo=UTC)
