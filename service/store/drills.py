"""When servers are drilled of their own accord, and when they were last."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import delete, func, insert, select

from recovery.drills.rotation import DrillSchedule, Window
from recovery.runs import RunKind
from service.store.database import Database
from service.store.reading import readable
from service.store.schema import drill_schedules, runs
from service.store.tenants import ensure_tenant


class DrillStore:
    """Raises as Database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def schedules(self) -> dict[str, DrillSchedule]:
        """By tenant; who has none is drilled by hand only."""
        with self._database.read() as connection:
            found = connection.execute(select(drill_schedules)).mappings()
            return dict(readable(drill_schedules, found, _schedule))

    def put_schedule(self, tenant: str, schedule: DrillSchedule | None) -> None:
        """Replaces the one before."""
        now = time.time()
        with self._database.write() as connection:
            ensure_tenant(connection, tenant, now)
            connection.execute(delete(drill_schedules).where(drill_schedules.c.tenant == tenant))
            if schedule is not None:
                connection.execute(
                    insert(drill_schedules).values(
                        tenant=tenant,
                        every_seconds=schedule.every_seconds,
                        window=None if schedule.window is None else str(schedule.window),
                        at_once=schedule.at_once,
                        changed_at=now,
                    )
                )

    def tried(self, tenant: str) -> dict[str, float]:
        """When each target was last drilled, whatever came of it, by the name of the plan or server."""
        mine = (runs.c.tenant == tenant) & (runs.c.kind == RunKind.DRILL.value)
        query = select(runs.c.plan, func.max(runs.c.created_at).label("at")).where(mine).group_by(runs.c.plan)
        with self._database.read() as connection:
            return {row.plan: row.at for row in connection.execute(query)}


def _schedule(fields: dict[str, Any]) -> tuple[str, DrillSchedule]:
    window = fields["window"]
    return fields["tenant"], DrillSchedule(
        every_seconds=fields["every_seconds"],
        window=None if window is None else Window.parse(window),
        at_once=fields["at_once"],
    )
