"""What a drill has proven, as JSON: gathered from the run and what was kept beside it. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from recovery.gates import gate_from_json
from recovery.repair.record import Change, FileChange, RepairRecord
from recovery.report import rto_seconds
from recovery.runs import Run, Step, StepState
from recovery.verdict import failures, warnings

_SETTINGS = ("cpus", "memory_mib", "uefi", "network")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """What there is beside the run. `manifests` (signed documents, parsed; absent where a point has none any more) and
    `repairs` are by server id; `plan_text` is None for a server's default plan; `host` is the service's machine."""

    manifests: Mapping[str, dict[str, Any]]
    repairs: Mapping[str, RepairRecord]
    plan_text: str | None
    host: str


def gather(run: Run, sources: Sources, now: float) -> dict[str, Any]:
    """The facts about a drill of which only the evidence itself is missing; `now` in seconds since 1970."""
    looked_at = [step for step in run.steps if step.action != "evidence"]
    not_done = [step for step in failures(run) if step.action != "evidence"]
    failed = [step.name for step in not_done if step.state is StepState.FAILED]
    return {
        "run": run.id,
        "kind": run.kind.value,
        "tenant": run.tenant,
        "plan": run.plan,
        "plan_text": sources.plan_text,
        "service_host": sources.host,
        "began_at": iso(run.created_at),
        "signed_at": iso(now),
        "verdict": "failed" if not_done else "held",
        "failed_at": failed[0] if failed else None,
        "warnings": [_timed(step) | {"name": step.name} for step in warnings(run)],
        "rto_seconds": rto_seconds(run),
        "servers": [_server(run, launch, sources) for launch in run.launches()],
        "steps": [_timed(step) | {"name": step.name} for step in looked_at],
    }


def iso(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _server(run: Run, launch: Step, sources: Sources) -> dict[str, Any]:
    args = launch.args
    its_steps = [step for step in run.steps if step.args.get("server_id") == args["server_id"]]
    gates = [step for step in its_steps if step.action == "gate"]
    looks = {step.action: step for step in its_steps if step.closing}
    manifest = sources.manifests.get(args["server_id"])
    repair = next((step for step in its_steps if step.action == "repair"), None)
    return {
        "server": args["server"],
        "server_id": args["server_id"],
        "point": args["point"],
        "taken_at": args["taken_at"],
        "root": None if manifest is None else json.loads(manifest["manifest"])["point"]["root"],
        "manifest": manifest,
        "boot": {name: args[name] for name in _SETTINGS} | {"devices": launch.result.get("devices")} | _timed(launch),
        "repair": None if repair is None else _repair(repair, sources.repairs.get(args["server_id"])),
        "gates": [_gate(gate) for gate in gates],
        "picture": _picture(looks.get("picture")),
        "filesystems": _filesystems(looks.get("filesystems")),
    }


def _timed(step: Step) -> dict[str, Any]:
    seconds = None
    if step.started_at is not None and step.ended_at is not None:
        seconds = round(step.ended_at - step.started_at, 3)
    return {"state": step.state.value, "began_at": iso(step.started_at), "seconds": seconds, "error": step.error}


def _gate(step: Step) -> dict[str, Any]:
    return _timed(step) | {"gate": str(gate_from_json(step.args["gate"])), "seen": step.result.get("seen")}


def _repair(step: Step, record: RepairRecord | None) -> dict[str, Any]:
    """The diff itself stays with the service; its sum tells whether what somebody shows is it."""
    if record is None:
        return _timed(step) | {"note": step.result.get("note"), "findings": [], "changes": []}
    return _timed(step) | {
        "note": step.result.get("note"),
        "system": record.system,
        "findings": [finding.what for finding in record.findings if finding.level != "ok"],
        "changes": list(dict.fromkeys(_changed(change) for change in record.changes)),
        "diff_sha256": hashlib.sha256(record.diff().encode(errors="surrogateescape")).hexdigest(),
    }


def _changed(change: Change) -> str:
    return change.path if isinstance(change, FileChange) else f"{change.hive}\\{change.key}"


def _picture(step: Step | None) -> dict[str, Any] | None:
    if step is None:
        return None
    return {name: step.result.get(name) for name in ("file", "sha256", "note", "console")} | {
        "taken_at": iso(step.ended_at)
    }


def _filesystems(step: Step | None) -> dict[str, Any] | None:
    if step is None:
        return None
    return _timed(step) | {"note": step.result.get("note"), "found": step.result.get("filesystems", [])}
