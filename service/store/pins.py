"""Pins: which points runs need, so that retention and a run that begins never miss one another.

A run needs the points that it boots, and those that its steps made for the way home, from the moment its row is there
until it has ended (a failback or a migration: until it has succeeded). Retention claims a point before it removes it;
no run begins on a point that is claimed or gone.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from sqlalchemy import Connection, select

from agent.protocol.errors import Conflict
from recovery.runs import Run, RunKind, RunState
from service.store.database import Database
from service.store.reading import read
from service.store.schema import points, runs, steps

_NEEDS_POINTS = (runs.c.state != RunState.ENDED.value) & ~(
    # what is at home, or has moved for good, goes back to no point; what an instance runs from the site keeps
    runs.c.kind.in_([RunKind.FAILBACK.value, RunKind.MIGRATE.value]) & (runs.c.state == RunState.SUCCEEDED.value)
)


class Pins:
    """Claims are of this process: after a crash nothing is being removed any more."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._claimed: set[str] = set()

    @contextlib.contextmanager
    def beginning(self) -> Iterator[None]:
        """While a run's row is made nothing is claimed."""
        with self._lock:
            yield

    def check(self, connection: Connection, run: Run) -> None:
        """Inside of `beginning`. Raises Conflict unless all points of the new run will stay."""
        needed = {str(step.args["point"]) for step in run.steps if step.args.get("point")}
        there = set(connection.execute(select(points.c.id).where(points.c.id.in_(needed))).scalars())
        gone = sorted(needed - (there - self._claimed))
        if gone:
            raise Conflict(f"point {gone[0]} is being removed: newer ones have taken its place", "choose another point")

    def pinned(self) -> dict[str, str]:
        """Point -> a run that needs it. Raises StorageError where a step is damaged: it may need any."""
        query = select(steps).join(runs, steps.c.run_id == runs.c.id).where(_NEEDS_POINTS)
        with self._database.read() as connection:
            found = [read(steps, row, dict) for row in connection.execute(query).mappings()]
        return {
            str(words["point"]): step["run_id"]
            for step in found
            for words in (step["args"], step["result"])
            if words.get("point")
        }

    @contextlib.contextmanager
    def claim(self, point_id: str) -> Iterator[str | None]:
        """Gives the run that needs the point, or None: then no run begins with it until the block ends."""
        with self._lock:
            run_id = self.pinned().get(point_id)
            if run_id is None:
                self._claimed.add(point_id)
        try:
            yield run_id
        finally:
            with self._lock:
                self._claimed.discard(point_id)
