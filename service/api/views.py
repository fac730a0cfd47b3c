"""What operators see of servers and points, in the contract's form. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from agent.protocol.errors import Conflict
from agent.protocol.messages import Point, to_json
from recovery.runs import Run, Step, StepState
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
        "lag_seconds": lag_seconds,
        "volumes": [to_json(volume) for volume in row.volumes],
        "last_point": None if newest is None else newest.id,
        "epoch": row.epoch,
        "owner": row.owner_machine,
        "last_seen_at": None if row.last_seen_at is None else iso_time(row.last_seen_at),
    }


def point_to_json(point: Point, proven: Mapping[str, bool]) -> dict[str, Any]:
    """`bootable` is true or false once a run has booted it, null while nobody tried."""
    return to_json(dataclasses.replace(point, bootable=proven.get(point.id)))


def proven_bootable(runs: Iterable[Run]) -> dict[str, bool]:
    """Which points were booted by a run, and whether all their gates held. `runs` are newest first: the newest
    word counts."""
    proven: dict[str, bool] = {}
    for run in runs:
        for launch in run.steps:
            verdict = _verdict(run.steps, launch) if launch.action == "launch" else None
            if verdict is not None:
                proven.setdefault(launch.args["point"], verdict)
    return proven


def _verdict(steps: list[Step], launch: Step) -> bool | None:
    """None: there were no gates, or somebody called the run off before they could tell."""
    gates = [s for s in steps if s.action == "gate" and s.args["instance_id"] == launch.args["instance_id"]]
    if any(gate.state is StepState.FAILED and "called off" not in (gate.error or "") for gate in gates):
        return False
    return True if gates and all(gate.state is StepState.DONE for gate in gates) else None


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
