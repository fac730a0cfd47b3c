from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.protocol.errors import NotFound, UsageError
from agent.protocol.messages import Point
from recovery.points import choose_point, choose_points
from tests.recovery.memory_control import make_point

POINTS = [
    make_point("abcd-3", taken_at="2027-01-15T07:00:00+00:00"),
    make_point("abcd-2", taken_at="2027-01-15T06:00:00+00:00"),
    make_point("wxyz-1", taken_at="2027-01-15T05:00:00+00:00"),
]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("latest", "abcd-3"),
        ("abcd-2", "abcd-2"),
        ("wxyz", "wxyz-1"),
        ("2027-01-15T06:30:00Z", "abcd-2"),
        ("2027-01-15T06:00:00", "abcd-2"),
        ("2027-01-15T07:59:00+02:00", "wxyz-1"),
        ("2099-01-01", "abcd-3"),
    ],
)
def test_a_point_is_chosen_by_newest_id_beginning_or_time(choice: str, expected: str) -> None:
    assert choose_point("web01", POINTS, choice).id == expected


@pytest.mark.parametrize(
    ("choice", "kind", "words"),
    [
        ("nonsense", NotFound, "no point 'nonsense' of web01"),
        ("abc", NotFound, "no point 'abc'"),
        ("abcd", UsageError, "abcd-3, abcd-2"),
        ("2027-01-15T04:59:59Z", NotFound, "the oldest is wxyz-1"),
    ],
)
def test_a_point_that_cannot_be_told_is_refused_naming_what_there_is(
    choice: str, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        choose_point("web01", POINTS, choice)


def test_a_server_without_points_cannot_be_recovered() -> None:
    with pytest.raises(NotFound, match="no recovery point of web01"):
        choose_point("web01", [], "latest")


def at(server: str, minute: int) -> Point:
    return make_point(f"{server}-{minute}", server, f"2027-01-15T07:{minute:02}:00+00:00")


def test_the_newest_of_a_kind_passes_over_those_that_are_not() -> None:
    application = dataclasses.replace(POINTS[1], consistency="application")
    points = [POINTS[0], application, dataclasses.replace(POINTS[2], bootable=True)]
    assert choose_point("web01", points, "latest-application") is application
    assert choose_point("web01", points, "latest-bootable").id == "wxyz-1"
    with pytest.raises(NotFound, match="no proven bootable point of web01"):
        choose_point("web01", POINTS, "latest-bootable")


def test_one_instant_is_the_newest_for_which_every_server_has_a_point() -> None:
    points = {"db": [at("db", 50), at("db", 20), at("db", 10)], "web": [at("web", 40), at("web", 21), at("web", 5)]}
    chosen = choose_points(points, "latest", within_seconds=120)
    assert {name: point.id for name, point in chosen.items()} == {"db": "db-20", "web": "web-21"}
    wider = choose_points(points, "latest", within_seconds=600)
    assert {name: point.id for name, point in wider.items()} == {"db": "db-50", "web": "web-40"}
    older = choose_points(points, "2027-01-15T07:20:30Z", within_seconds=900)
    assert {name: point.id for name, point in older.items()} == {"db": "db-20", "web": "web-5"}


def test_no_common_instant_is_refused_naming_the_servers_that_do_not_meet() -> None:
    with pytest.raises(NotFound, match=r"db has none as old as .*, the one of web"):
        choose_points({"db": [at("db", 50)], "web": [at("web", 5)]}, "latest", within_seconds=60)


minutes = st.lists(st.integers(0, 59), min_size=1, max_size=6, unique=True).map(lambda found: sorted(found)[::-1])


@given(st.lists(minutes, min_size=1, max_size=4), st.integers(0, 20))
def test_no_newer_instant_is_ever_missed(servers: list[list[int]], within_minutes: int) -> None:
    points = {f"s{n}": [at(f"s{n}", minute) for minute in found] for n, found in enumerate(servers)}
    wanted = None
    for instant in range(59, -1, -1):  # by trying all
        newest = [next((minute for minute in found if minute <= instant), None) for found in servers]
        if None not in newest and max(newest) - min(newest) <= within_minutes:  # type: ignore[type-var,operator]
            wanted = newest
            break
    if wanted is None:
        with pytest.raises(NotFound):
            choose_points(points, "latest", within_minutes * 60)
    else:
        chosen = choose_points(points, "latest", within_minutes * 60)
        assert [chosen[f"s{n}"].id for n in range(len(servers))] == [
            f"s{n}-{minute}" for n, minute in enumerate(wanted)
        ]
