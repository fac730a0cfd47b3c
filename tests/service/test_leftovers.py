"""What runs leave in the data folder goes when its time is over, and not before."""

from __future__ import annotations

from pathlib import Path

import pytest

from recovery.runs import RunState
from service.leftovers import Leftovers
from service.store.database import Database
from service.store.proofs import ProofStore
from service.store.runs import RunRows
from tests.service.store.rows_for_tests import drilled, with_point

DAY = 86_400.0


class Shelf:
    """A data folder in which each run leaves something everywhere; runs end when they have their verdict."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.database = database
        self.folder = folder
        self.runs = RunRows(database)
        with_point(database)

    def drill(self, run_id: str, *, held: bool, day: int, state: RunState = RunState.ENDED) -> None:
        drilled(self.database, run_id, held=held, at=day * DAY)
        self.runs.save_state(run_id, state, day * DAY)
        self.leave(run_id)

    def leave(self, run_id: str) -> None:
        for path in (f"drills/{run_id}/{run_id}.json", f"repairs/{run_id}/srv-1/scratch/volume-0.qcow2"):
            (self.folder / path).parent.mkdir(parents=True)
            (self.folder / path).touch()

    def at(self, day: int) -> Leftovers:
        return Leftovers(
            self.folder / "drills",
            self.folder / "repairs",
            self.runs,
            ProofStore(self.database),
            keep_days=10,
            now=lambda: day * DAY,
        )

    def there(self) -> list[str]:
        drills = sorted(path.name for path in self.folder.glob("drills/*"))
        assert drills == sorted(path.name for path in self.folder.glob("repairs/*"))
        return drills


@pytest.fixture
def shelf(database: Database, tmp_path: Path) -> Shelf:
    return Shelf(database, tmp_path)


def test_what_an_ended_run_left_stays_for_so_many_days(shelf: Shelf) -> None:
    shelf.drill("drill-1", held=False, day=1)
    assert shelf.at(11).remove_old() == []
    assert shelf.there() == ["drill-1"]
    assert shelf.at(12).remove_old() == ["drill-1"]
    assert shelf.there() == []
    assert shelf.at(12).remove_old() == []


def test_the_newest_drill_that_proved_a_server_bootable_stays_however_old_it_is(shelf: Shelf) -> None:
    shelf.drill("drill-1", held=True, day=1)
    shelf.drill("drill-2", held=True, day=2)
    shelf.drill("drill-3", held=False, day=3)
    assert shelf.at(1000).remove_old() == ["drill-1", "drill-3"]
    shelf.drill("drill-4", held=True, day=1000)
    assert shelf.at(1001).remove_old() == ["drill-2"]
    assert shelf.there() == ["drill-4"]


def test_what_belongs_to_a_run_that_goes_on_or_that_nobody_knows_stays(shelf: Shelf) -> None:
    shelf.drill("drill-1", held=False, day=1, state=RunState.FAILED)
    shelf.leave("drill-unknown")
    assert shelf.at(1000).remove_old() == []
    assert shelf.there() == ["drill-1", "drill-unknown"]


def test_scratch_of_repairs_that_were_cut_off_goes_with_their_runs(shelf: Shelf) -> None:
    shelf.drill("drill-1", held=True, day=1)
    shelf.drill("drill-2", held=True, day=1, state=RunState.RUNNING)
    shelf.leave("drill-unknown")
    shelf.at(1).clear_scratch()
    assert [path.parts[-3] for path in shelf.folder.glob("repairs/*/*/scratch")] == ["drill-2"]
