from __future__ import annotations

from recovery.drills.rotation import DrillSchedule, Window
from recovery.runs import RunState, StepState
from service.store.database import Database
from service.store.drills import DrillStore
from service.store.proofs import ProofStore
from tests.service.store.rows_for_tests import drilled, with_point

DAILY = DrillSchedule(every_seconds=86_400.0, window=Window.parse("22:00-02:00"), at_once=3)


def test_a_schedule_is_kept_replaced_and_removed(database: Database) -> None:
    store = DrillStore(database)
    assert store.schedules() == {}
    store.put_schedule("default", DAILY)
    store.put_schedule("acme", DrillSchedule(every_seconds=3600.0))
    assert store.schedules() == {"default": DAILY, "acme": DrillSchedule(every_seconds=3600.0)}
    store.put_schedule("acme", None)
    assert store.schedules() == {"default": DAILY}


def test_what_a_drill_proved_outlives_its_end_and_the_newest_verdict_counts(database: Database) -> None:
    with_point(database)
    proofs = ProofStore(database)
    assert proofs.of_servers("default") == proofs.bootable("default") == proofs.of_points("srv-1") == {}
    rows = drilled(database, "drill-1", held=True, at=100.0)
    rows.save_state("drill-1", RunState.ENDED, 150.0)
    drilled(database, "drill-2", held=False, at=200.0)
    assert proofs.of_servers("default")["srv-1"].held is False
    assert proofs.bootable("default")["srv-1"].run == "drill-1"
    assert proofs.bootable("default")["srv-1"].at == 100.0
    assert proofs.of_points("srv-1")["pt-1"].run == "drill-2"
    assert proofs.of_servers("acme") == {}


def test_a_run_that_was_tried_again_has_one_verdict_the_last(database: Database) -> None:
    with_point(database)
    rows = drilled(database, "drill-1", held=False, at=100.0)
    run = rows.get("drill-1")
    run.steps[1].state, run.steps[1].error, run.steps[1].ended_at = StepState.DONE, None, 120.0
    rows.save_step("drill-1", 1, run.steps[1])
    rows.save_state("drill-1", RunState.SUCCEEDED, 120.0)
    proof = ProofStore(database).of_servers("default")["srv-1"]
    assert (proof.held, proof.at) == (True, 120.0)


def test_drills_that_have_not_ended_are_found_and_when_each_was_last_tried(database: Database) -> None:
    with_point(database)
    rows = drilled(database, "drill-1", held=True, at=100.0, expires_at=7300.0, scheduled=True)
    drilled(database, "drill-2", held=False, at=200.0)
    assert [run.id for run in rows.live_drills()] == ["drill-1", "drill-2"]
    found = rows.get("drill-1")
    assert (found.expires_at, found.scheduled) == (7300.0, True)
    assert [step.closing for step in found.steps] == [False, False, True]
    rows.save_state("drill-2", RunState.ENDED, 300.0)
    assert [run.id for run in rows.live_drills()] == ["drill-1"]
    assert DrillStore(database).tried("default") == {"web01": 199.0}
