"""Points that runs need are pinned from the run's first row to its end."""

import pytest

from agent.protocol.errors import Conflict
from recovery.runs import Run, RunKind, RunState, Step
from service.store.database import Database
from service.store.points import PointStore
from service.store.runs import RunRows
from tests.service.store.rows_for_tests import add_server, manifest


@pytest.fixture
def runs(database: Database) -> RunRows:
    add_server(database)
    for name in ("pt-1", "pt-2"):
        PointStore(database).add(manifest(name))
    return RunRows(database)


def run(run_id: str, point: str | None = None, kind: RunKind = RunKind.DRILL) -> Run:
    args = {} if point is None else {"point": point}
    return Run(id=run_id, tenant="default", kind=kind, plan="web01", steps=[Step(name="s", action="a", args=args)])


@pytest.mark.parametrize("state", [state for state in RunState if state is not RunState.ENDED])
def test_whatever_a_drill_or_failover_boots_stays_until_it_has_ended(runs: RunRows, state: RunState) -> None:
    runs.add(run("r-1", "pt-1"))
    runs.save_state("r-1", state, None)
    assert runs.pins.pinned() == {"pt-1": "r-1"}
    runs.save_state("r-1", RunState.ENDED, 1.0)
    assert runs.pins.pinned() == {}


def test_points_that_a_failback_made_stay_until_they_are_home(runs: RunRows) -> None:
    failback = run("b-1", kind=RunKind.FAILBACK)
    runs.add(failback)
    assert runs.pins.pinned() == {}
    failback.steps[0].result = {"point": "pt-2"}
    runs.save_step("b-1", 0, failback.steps[0])
    assert runs.pins.pinned() == {"pt-2": "b-1"}
    runs.save_state("b-1", RunState.FAILED, 1.0)
    assert runs.pins.pinned() == {"pt-2": "b-1"}, "it may be tried again"
    runs.save_state("b-1", RunState.SUCCEEDED, 1.0)
    assert runs.pins.pinned() == {}


def test_what_a_migration_boots_stays_until_the_server_has_moved(runs: RunRows) -> None:
    runs.add(run("m-1", "pt-1", RunKind.MIGRATE))
    assert runs.pins.pinned() == {"pt-1": "m-1"}
    runs.save_state("m-1", RunState.FAILED, 1.0)
    assert runs.pins.pinned() == {"pt-1": "m-1"}, "it may be tried again"
    runs.save_state("m-1", RunState.SUCCEEDED, 2.0)
    assert runs.pins.pinned() == {}


def test_a_claim_keeps_runs_off_a_point_while_it_lasts_and_a_run_keeps_claims_off(runs: RunRows) -> None:
    with runs.pins.claim("pt-1") as needed_by:
        assert needed_by is None
        with pytest.raises(Conflict, match="pt-1"):
            runs.add(run("r-1", "pt-1"))
        runs.add(run("r-2", "pt-2"))
    runs.add(run("r-1", "pt-1"))
    with runs.pins.claim("pt-1") as needed_by:
        assert needed_by == "r-1"
        runs.add(run("r-3", "pt-1"))


def test_a_run_on_a_point_that_is_gone_is_refused_and_leaves_no_row(runs: RunRows) -> None:
    with pytest.raises(Conflict, match="choose another"):
        runs.add(run("r-1", "pt-9"))
    assert runs.newest("default", 1) == []
