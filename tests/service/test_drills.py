"""Scheduled drills over a real database; the site is in memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from recovery.drills.rotation import DrillSchedule, Window
from recovery.plans import Caps
from recovery.runs import RunKind, RunState
from service.drills import REFUSED_SECONDS, DrillRounds
from service.store.database import Database
from service.store.drills import DrillStore
from tests.service.store.rows_for_tests import add_server, manifest
from tests.service.test_planning import TAKEN_AT, Office

DAY = 86_400.0
PAIR = """plan: pair
groups:
- servers: [{name: web01, gates: [{console: {text: "login:"}}]}, {name: db01, gates: [{console: {text: "login:"}}]}]
"""


class Rounds:
    """An office whose drills are scheduled, and a clock."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.now = 1_000_000.0
        self.office = Office(database, folder)
        for name in ("web01", "db01"):
            add_server(database, id=f"srv-{name}", name=name)
            self.office.points.add(manifest(f"pt-{name}", f"srv-{name}", server=name, taken_at=TAKEN_AT))
        self.rounds = DrillRounds(
            DrillStore(database),
            self.office.book,
            self.office.runs,
            self.office.desk,
            self.office.audit,
            now=lambda: self.now,
        )

    def turn(self) -> list[str]:
        """The targets whose drills this turn began; each is over, and ended."""
        begun = []
        for run_id in self.rounds.turn():
            run = self.office.executor.wait(run_id)
            begun.append(run.plan)
            self.office.executor.end(run_id)
            assert self.office.executor.wait(run_id).state is RunState.ENDED
        return begun


@pytest.fixture
def world(database: Database, tmp_path: Path) -> Rounds:
    return Rounds(database, tmp_path)


def test_nobody_is_drilled_without_a_schedule(world: Rounds) -> None:
    assert world.turn() == []


def test_each_server_has_its_turn_once_a_period_and_the_drill_ends_by_itself(world: Rounds) -> None:
    world.rounds.set_schedule("default", DrillSchedule(every_seconds=DAY))
    (run_id,) = world.rounds.turn()
    run = world.office.executor.wait(run_id)
    assert (run.plan, run.kind, run.scheduled) == ("db01", RunKind.DRILL, True)
    assert run.expires_at is not None
    assert world.rounds.turn() == [], "one at once: the first has not been ended yet"
    world.office.executor.end(run_id)
    world.office.executor.wait(run_id)
    assert world.turn() == ["web01"]
    assert world.turn() == []
    assert "drills.schedule" in [entry.action for entry in world.office.audit.newest_first("default")]


def test_servers_of_a_plan_are_drilled_by_it_together(world: Rounds) -> None:
    world.office.book.apply("default", "pair", PAIR, draft=False)
    world.rounds.set_schedule("default", DrillSchedule(every_seconds=DAY, at_once=5))
    assert world.turn() == ["pair"]
    (target,) = world.rounds.standing("default")["targets"]
    assert [server["server"] for server in target["servers"]] == ["web01", "db01"]
    assert all(server["last"]["held"] and server["proven_at"] for server in target["servers"])


def test_outside_of_the_window_nothing_begins(world: Rounds) -> None:
    window = Window.parse("01:00-05:00")
    world.now = 1000 * DAY + 12 * 3600
    world.rounds.set_schedule("default", DrillSchedule(every_seconds=DAY, window=window, at_once=2))
    assert world.turn() == []
    world.now = 1001 * DAY + 2 * 3600
    assert world.turn() == ["db01", "web01"]


def test_a_drill_that_cannot_begin_is_told_lets_the_others_pass_and_waits_an_hour(world: Rounds) -> None:
    world.office.plans.put_caps("default", Caps(instances=0))
    world.rounds.set_schedule("default", DrillSchedule(every_seconds=DAY, at_once=2))
    assert world.turn() == []
    refused = [entry for entry in world.office.audit.newest_first("default") if entry.action == "drill.refused"]
    assert len(refused) == 2
    assert "more than tenant default allows" in refused[0].detail
    world.office.plans.put_caps("default", Caps())
    assert world.turn() == []
    world.now += REFUSED_SECONDS
    assert world.turn() == ["db01", "web01"]


def test_how_everybody_stands_is_shown_longest_unproven_first(world: Rounds) -> None:
    standing = world.rounds.standing("default")
    assert standing["schedule"] is None
    assert [target["due_at"] for target in standing["targets"]] == [None, None]
    world.rounds.set_schedule("default", DrillSchedule(every_seconds=DAY, window=Window.parse("01:00-00:59")))
    world.turn()
    standing = world.rounds.standing("default")
    assert standing["schedule"] == {"every_seconds": DAY, "window": "01:00-00:59", "at_once": 1}
    assert [target["target"] for target in standing["targets"]] == ["web01", "db01"]
    assert standing["targets"][0]["servers"] == [{"server": "web01", "proven_at": None, "last": None}]
