"""Runs and their steps: what the executor goes on with after a crash. Implements recovery.runs.RunStore."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, insert, select, update

from agent.protocol.errors import Conflict, NotFound
from recovery.runs import Run, RunKind, RunState, Step, StepState
from service.store.database import Database
from service.store.pins import Pins
from service.store.proofs import keep_proofs
from service.store.reading import read, readable
from service.store.schema import runs, steps

_LIVE = runs.c.state.in_([state.value for state in RunState if state is not RunState.ENDED])


class RunRows:
    """`on_change` is called after each change, from whatever thread made it."""

    def __init__(self, database: Database, on_change: Callable[[], None] = lambda: None) -> None:
        self._database = database
        self._on_change = on_change
        self.pins = Pins(database)

    def add(self, run: Run) -> None:
        """Raises Conflict, also for a run on a point that is being removed."""
        with self.pins.beginning(), self._database.write() as connection:
            if connection.execute(select(runs.c.id).where(runs.c.id == run.id)).one_or_none() is not None:
                raise Conflict(f"there is a run {run.id} already")
            self.pins.check(connection, run)
            connection.execute(
                insert(runs).values(
                    id=run.id,
                    tenant=run.tenant,
                    kind=run.kind.value,
                    plan=run.plan,
                    state=run.state.value,
                    created_at=run.created_at,
                    ended_at=run.ended_at,
                    failover_run=run.failover_run,
                    price=run.price,
                    over_cap=run.over_cap,
                    committed_at=run.committed_at,
                    expires_at=run.expires_at,
                    scheduled=run.scheduled,
                    version=run.version,
                )
            )
            rows = [
                {"run_id": run.id, "position": position, "tenant": run.tenant, **_task(step), **_progress(step)}
                for position, step in enumerate(run.steps)
            ]
            if rows:
                connection.execute(insert(steps), rows)
        self._on_change()

    def get(self, run_id: str) -> Run:
        with self._database.read() as connection:
            return _one(connection, run_id)

    def knows(self, run_id: str) -> bool:
        with self._database.read() as connection:
            return connection.execute(select(runs.c.id).where(runs.c.id == run_id)).one_or_none() is not None

    def newest(self, tenant: str, most: int) -> list[Run]:
        """So many at the most, newest first."""
        mine = select(runs.c.id).where(runs.c.tenant == tenant)
        last = mine.order_by(runs.c.created_at.desc(), runs.c.id.desc()).limit(most)
        return self._newest_first(runs.c.id.in_(last))

    def those(self, run_ids: Collection[str]) -> list[Run]:
        """Those that there are, newest first."""
        return self._newest_first(runs.c.id.in_(run_ids)) if run_ids else []

    def live(self, tenant: str) -> list[Run]:
        """As RunStore.live."""
        mine = (runs.c.tenant == tenant) & _LIVE
        home = runs.c.failover_run.in_(select(runs.c.id).where(mine))
        return self._newest_first(mine | home)

    def failbacks(self, failover_id: str) -> list[Run]:
        """As RunStore.failbacks."""
        return self._newest_first(runs.c.failover_run == failover_id)

    def unfinished(self) -> list[Run]:
        """In state RUNNING or ENDING, oldest first."""
        with self._database.read() as connection:
            return _runs(connection, runs.c.state.in_([RunState.RUNNING.value, RunState.ENDING.value]))

    def live_drills(self) -> list[Run]:
        """Of every tenant, but for those that have ended; oldest first."""
        with self._database.read() as connection:
            return _runs(connection, _LIVE & (runs.c.kind == RunKind.DRILL.value))

    def ended_before(self, when: float) -> set[str]:
        """The ids of runs of every tenant that ended before `when` (seconds since 1970)."""
        over = (runs.c.state == RunState.ENDED.value) & (runs.c.ended_at < when)
        with self._database.read() as connection:
            return set(connection.execute(select(runs.c.id).where(over)).scalars())

    def version(self, run_id: str, tenant: str) -> int:
        """Rises with every change of the run. Raises NotFound, also for another tenant's."""
        mine = (runs.c.id == run_id) & (runs.c.tenant == tenant)
        with self._database.read() as connection:
            version = connection.execute(select(runs.c.version).where(mine)).scalar()
        if version is None:
            raise NotFound(f"there is no run {run_id}", "see: understudy runs")
        return int(version)

    def save_step(self, run_id: str, position: int, step: Step) -> None:
        self.save_steps(run_id, {position: step})

    def save_steps(self, run_id: str, changed: Mapping[int, Step]) -> None:
        """One transaction, however many there are."""
        with self._database.write() as connection:
            self._touch(connection, run_id)
            for position, step in changed.items():
                this = (steps.c.run_id == run_id) & (steps.c.position == position)
                if connection.execute(update(steps).where(this).values(_progress(step))).rowcount != 1:
                    raise NotFound(f"run {run_id} has no step {position}")
        self._on_change()

    def save_committed(self, run_id: str, at: float) -> None:
        with self._database.write() as connection:
            self._touch(connection, run_id, committed_at=at)
        self._on_change()

    def save_state(self, run_id: str, state: RunState, ended_at: float | None) -> None:
        with self._database.write() as connection:
            self._touch(connection, run_id, state=state.value, ended_at=ended_at)
            if state in (RunState.SUCCEEDED, RunState.FAILED):
                keep_proofs(connection, _one(connection, run_id))
        self._on_change()

    def _newest_first(self, wanted: ColumnElement[bool]) -> list[Run]:
        with self._database.read() as connection:
            return _runs(connection, wanted)[::-1]

    def _touch(self, connection: Connection, run_id: str, **values: Any) -> None:
        changed = update(runs).where(runs.c.id == run_id).values(version=runs.c.version + 1, **values)
        if connection.execute(changed).rowcount != 1:
            raise NotFound(f"there is no run {run_id}", "see: understudy runs")


def _task(step: Step) -> dict[str, Any]:
    """What never changes."""
    names = ("name", "action", "args", "after", "retries", "closing")
    return {name: getattr(step, name) for name in names}


def _progress(step: Step) -> dict[str, Any]:
    return {
        "optional": step.optional,
        "state": step.state.value,
        "started_at": step.started_at,
        "ended_at": step.ended_at,
        "error": step.error,
        "waits_for": step.waits_for,
        "result": step.result,
    }


def _one(connection: Connection, run_id: str) -> Run:
    """Raises NotFound, StorageError (its row, or a step's, is damaged)."""
    made = _runs(connection, runs.c.id == run_id, strict=True)
    if not made:
        raise NotFound(f"there is no run {run_id}", "see: understudy runs")
    return made[0]


def _runs(connection: Connection, wanted: ColumnElement[bool], *, strict: bool = False) -> list[Run]:
    """Oldest first, with their steps, in two queries; unless it is to be `strict`, without those that are damaged."""
    query = select(runs).where(wanted).order_by(runs.c.created_at, runs.c.id)
    parts = select(steps).join(runs, runs.c.id == steps.c.run_id).where(wanted)
    parts = parts.order_by(steps.c.run_id, steps.c.position)
    steps_of: dict[str, list[RowMapping]] = {}
    for found in connection.execute(parts).mappings():
        steps_of.setdefault(found["run_id"], []).append(found)

    def make(fields: dict[str, Any]) -> Run:
        its_steps = [read(steps, found, _step) for found in steps_of.get(fields["id"], [])]
        return Run(
            **{**fields, "kind": RunKind(fields["kind"]), "state": RunState(fields["state"]), "steps": its_steps}
        )

    rows = connection.execute(query).mappings()
    return [read(runs, found, make) for found in rows] if strict else readable(runs, rows, make)


def _step(found: dict[str, Any]) -> Step:
    fields: dict[str, Any] = {name: found[name] for name in Step.__dataclass_fields__}
    return Step(**{**fields, "state": StepState(fields["state"])})
