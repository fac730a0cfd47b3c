from pathlib import Path

import pytest

from agent.protocol.errors import Conflict, NotFound
from recovery.runs import Run, RunKind, RunState, Step, StepState
from service.store.database import Database, sqlite_url
from service.store.points import PointStore
from service.store.runs import RunRows
from tests.service.store.rows_for_tests import add_server, manifest

POINT = "pt-1"
WEB01 = {"server": "web01", "server_id": "srv-1", "instance_id": "i-1"}


@pytest.fixture(autouse=True)
def the_point_that_is_booted(database: Database) -> None:
    add_server(database)
    PointStore(database).add(manifest(POINT))


def run(run_id: str = "drill-1", created_at: float = 1.0, **fields: object) -> Run:
    steps = [
        Step(name="launch web01", action="launch", args={**WEB01, "ports": {"80": 0}, "point": POINT}),
        Step(name="gate", action="gate", args=WEB01),
    ]
    return Run(**{"id": run_id, "tenant": "default", "kind": RunKind.DRILL, "plan": "web01", "steps": steps,  # type: ignore[arg-type]
                  "created_at": created_at, **fields})  # fmt: skip


def test_a_run_comes_back_as_it_was_added(database: Database) -> None:
    store = RunRows(database)
    store.add(run(failover_run="failover-1"))
    assert store.get("drill-1") == run(failover_run="failover-1")


def test_a_step_is_stored_whole_and_the_version_rises(database: Database) -> None:
    rings: list[None] = []
    store = RunRows(database, lambda: rings.append(None))
    store.add(run())
    step = run().steps[1]
    step.state, step.started_at, step.ended_at = StepState.FAILED, 2.0, 3.5
    step.error, step.waits_for, step.result = "no", "you", {"point": "pt-1"}
    store.save_step("drill-1", 1, step)
    found = store.get("drill-1")
    assert found.steps == [run().steps[0], step]
    assert found.version == 1
    store.save_state("drill-1", RunState.FAILED, 4.0)
    found = store.get("drill-1")
    assert (found.state, found.ended_at, found.version) == (RunState.FAILED, 4.0, 2)
    assert len(rings) == 3


def test_the_newest_runs_are_listed_newest_first_and_unfinished_ones_oldest_first(database: Database) -> None:
    store = RunRows(database)
    for number, state in enumerate([RunState.RUNNING, RunState.SUCCEEDED, RunState.ENDING, RunState.ENDED]):
        store.add(run(f"r-{number}", created_at=float(number), state=state))
    assert [found.id for found in store.newest("default", 9)] == ["r-3", "r-2", "r-1", "r-0"]
    assert [found.id for found in store.newest("default", 3)] == ["r-3", "r-2", "r-1"]
    assert [found.id for found in store.unfinished()] == ["r-0", "r-2"]
    assert all(len(found.steps) == 2 for found in store.newest("default", 9))
    assert store.newest("somebody-else", 9) == []
    assert [found.id for found in store.those({"r-0", "r-2", "r-9"})] == ["r-2", "r-0"]


def test_live_runs_come_with_the_failbacks_that_tell_what_is_at_home(database: Database) -> None:
    store = RunRows(database)
    away = run("f-1", 1.0, kind=RunKind.FAILOVER, state=RunState.SUCCEEDED)
    home = run("f-2", 2.0, kind=RunKind.FAILOVER, state=RunState.ENDED)
    for known in (away, home):
        store.add(known)
        store.add(run(f"b-{known.id}", 3.0, kind=RunKind.FAILBACK, failover_run=known.id, state=RunState.ENDED))
    assert [found.id for found in store.live("default")] == ["b-f-1", "f-1"]
    assert store.live("somebody-else") == []
    assert [found.id for found in store.failbacks("f-2")] == ["b-f-2"]


def test_what_is_not_there_is_not_found_and_twice_the_same_is_a_conflict(database: Database) -> None:
    store = RunRows(database)
    store.add(run())
    with pytest.raises(Conflict, match="drill-1"):
        store.add(run())
    with pytest.raises(NotFound):
        store.get("drill-2")
    with pytest.raises(NotFound):
        store.save_step("drill-2", 0, run().steps[0])
    with pytest.raises(NotFound):
        store.save_step("drill-1", 7, run().steps[0])
    assert store.get("drill-1").version == 0, "a failed call changes nothing"


def test_runs_survive_the_process(database: Database, tmp_path: Path) -> None:
    RunRows(database).add(run())
    other = Database.open(sqlite_url(tmp_path / "understudy.sqlite"))
    assert RunRows(other).get("drill-1") == run()
    other.close()
