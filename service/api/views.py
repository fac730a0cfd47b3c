"""What operators see of servers and points, in the contract's form. Pure."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import Any

from agent.protocol.errors import Conflict, StorageError
from agent.protocol.messages import Point, to_json
from recovery.preflight import Proof
from service.store.rows import ServerRow

SILENT_SECONDS = 120.0
"""An agent that waits for commands asks at least every 30 s."""


def iso_time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def server_to_json(row: ServerRow, newest: Point | None, now: float) -> dict[str, Any]:
    """`last_point` is the newest point's id; it and `lag_seconds` are null while there is none."""
    lag_seconds = None
    if newest is not None:
        lag_seconds = round(max(0.0, now - datetime.fromisoformat(newest.taken_at).timestamp()), 1)
    return {
        "id": row.id,
        "name": row.name,
        "state": row.state.value,
        "state_since": None if row.state_since is None else iso_time(row.state_since),
        "lag_seconds": lag_seconds,
        "volumes": [to_json(volume) for volume in row.volumes],
        "last_point": None if newest is None else newest.id,
        "epoch": row.epoch,
        "failover_run": row.failover_run,
        "failback_run": row.failback_run,
        "owner": row.owner_machine,
        "source": row.source_machine,
        "stale": _stale_to_json(row),
        "last_seen_at": None if row.last_seen_at is None else iso_time(row.last_seen_at),
        "error": None,
    }


def damaged_to_json(server_id: str, name: str, error: StorageError) -> dict[str, Any]:
    """In a list of servers: one whose row is damaged, with all that can be said of it."""
    unknown = (
        *("state_since", "lag_seconds", "last_point", "epoch", "failover_run", "failback_run", "owner", "source"),
        *("stale", "last_seen_at", "bootable", "proven_at"),
    )
    known = {"id": server_id, "name": name, "state": "damaged", "volumes": [], "error": str(error)}
    return known | dict.fromkeys(unknown)


def _stale_to_json(row: ServerRow) -> dict[str, Any] | None:
    """A machine that came though another is the server, and was told to stand down; null: none did."""
    if row.stale is None:
        return None
    times = {name: iso_time(row.stale[name]) for name in ("since", "seen_at")}
    return {"machine": row.stale["machine"], **times, "stopped": row.stale["fenced"]}


def server_proof_to_json(last: Proof | None, bootable: Proof | None) -> dict[str, Any]:
    """`bootable` is the newest verdict on the server, null while nobody tried; `proven_at` when it last held."""
    return {
        "bootable": None if last is None else last.held,
        "proven_at": None if bootable is None else iso_time(bootable.at),
    }


def point_to_json(point: Point, proof: Proof | None, held_because: str | None = None) -> dict[str, Any]:
    """`bootable` is true or false once a run has booted it (at `proven_at`), null while nobody tried. `held_because`
    says why the point is still there though the server has as many newer ones as are kept; null if it has not."""
    return to_json(dataclasses.replace(point, bootable=None if proof is None else proof.held)) | {
        "proven_at": None if proof is None else iso_time(proof.at),
        "held_because": held_because,
    }


def why_deaf(row: ServerRow, *, pushing: bool, now: float) -> Conflict | None:
    """Why a command would not reach this server's agent; None if it should.

    An agent that is not there hears of nothing; one that pushes asks again when it is done, and one that enrolled a
    moment ago is about to."""
    heard_at = row.created_at if row.last_seen_at is None else row.last_seen_at
    if pushing or now - heard_at <= SILENT_SECONDS:
        return None
    when = "has never asked for work" if row.last_seen_at is None else f"is silent for {now - heard_at:.0f} s"
    return Conflict(
        f"the agent of {row.name} {when}, so it cannot be asked for a point",
        "see that it runs there: understudy-agent run; or push there by hand: understudy-agent push",
    )
