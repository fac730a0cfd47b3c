"""Rows that tests need and do not care about."""

from typing import Any

from agent.protocol.messages import Point, PointVolume
from recovery.runs import Run, RunKind, RunState, Step, StepState
from service.receiver.manifest import Manifest
from service.store.database import Database
from service.store.points import PointStore
from service.store.rows import ServerRow
from service.store.runs import RunRows
from service.store.servers import insert_server
from service.store.tenants import ensure_tenant


def add_server(database: Database, **fields: object) -> ServerRow:
    row = ServerRow(**{"id": "srv-1", "tenant": "default", "name": "web01", "created_at": 1.0, **fields})  # type: ignore[arg-type]
    with database.write() as connection:
        ensure_tenant(connection, row.tenant, 0.0)
        insert_server(connection, row)
    return row


def manifest(point_id: str, server_id: str = "srv-1", **fields: object) -> Manifest:
    point = Point(
        **{  # type: ignore[arg-type]
            "id": point_id,
            "server": "web01",
            "taken_at": "2026-01-31T14:30:00.000Z",
            "consistency": "crash",
            "completeness": "scanned",
            "root": "ab" * 32,
            "size_bytes": 1 << 40,
            "sent_bytes": 7,
            "epoch": 3,
            "volumes": [PointVolume(path="/dev/vda", size_bytes=1 << 40, block_bytes=65536, root="cd" * 32)],
            "label": "before the upgrade",
            **fields,
        }
    )
    return Manifest(point=point, server_id=server_id, tenant="default", parent=None)


def drilled(database: Database, run_id: str, held: bool, at: float, **fields: Any) -> RunRows:
    """A drill of pt-1 (see with_point) with this verdict, still there."""
    about = {"server": "web01", "server_id": "srv-1", "instance_id": f"i-{run_id}"}
    gate = StepState.DONE if held else StepState.FAILED
    run = Run(
        id=run_id,
        tenant="default",
        kind=RunKind.DRILL,
        plan="web01",
        created_at=at - 1,
        steps=[
            Step(name="launch", action="launch", args={**about, "point": "pt-1"}, state=StepState.DONE),
            Step(name="gate", action="gate", args=about, state=gate, ended_at=at, error=None if held else "no"),
            Step(name="evidence", action="evidence", closing=True),
        ],
        **fields,
    )
    rows = RunRows(database)
    rows.add(run)
    rows.save_state(run_id, RunState.SUCCEEDED if held else RunState.FAILED, at)
    return rows


def with_point(database: Database) -> None:
    add_server(database)
    PointStore(database).add(manifest("pt-1"))
