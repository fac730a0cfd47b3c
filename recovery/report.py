"""A run as everybody sees it: API, console and command line. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recovery.ending import ROLLBACK_SECONDS, not_called_off
from recovery.prices import used
from recovery.runs import Run, RunKind, RunState, Step, StepState
from recovery.sites.contract import Instance, InstanceState
from recovery.verdict import failures, warnings


def run_to_json(run: Run, instances: Mapping[str, Instance], now: float) -> dict[str, Any]:
    """The run in the contract's form. `instances` are the site's, by id, as they are now."""
    return {
        "id": run.id,
        "kind": run.kind.value,
        "plan": run.plan,
        "state": run.state.value,
        "created_at": run.created_at,
        "ended_at": run.ended_at,
        "failover_run": run.failover_run,
        "committed_at": run.committed_at,
        "rollback_until": rollback_until(run),
        "steps": [_step_to_json(step) for step in run.steps],
        "rto_seconds": rto_seconds(run),
        "price": run.price or None,
        "used": used(run, now),
        "over_cap": run.over_cap,
        "expires_at": run.expires_at,
        "scheduled": run.scheduled,
        "received_bytes": received_bytes(run),
        "warnings": [f"{step.name}: {next(iter((step.error or '').splitlines()), '')}" for step in warnings(run)],
        "not_called_off": not_called_off(run),
        "instances": [_instance_to_json(step, instances) for step in run.launches()],
    }


def rto_seconds(run: Run) -> float | None:
    """From the button to the last gate (without gates: the last launch) that held; None until all have. Of a failback,
    which waits for people: how long the server was away, from its shutdown to the first word from home."""
    if run.kind is RunKind.FAILBACK:
        return _outage_seconds(run)
    ends = [step.ended_at for step in run.steps if step.action in ("launch", "gate")]
    if any(not step.closing for step in failures(run)):
        return None
    return round(max(end for end in ends if end is not None) - run.created_at, 3)


def rollback_until(run: Run) -> float | None:
    """Seconds since 1970; None where it cannot be rolled back at all."""
    live = run.state in (RunState.RUNNING, RunState.SUCCEEDED, RunState.FAILED)
    possible = run.kind is RunKind.FAILOVER and live and run.committed_at is None
    return run.created_at + ROLLBACK_SECONDS if possible else None


def received_bytes(run: Run) -> int | None:
    """What came home over the wire; None for all but failbacks."""
    if run.kind is not RunKind.FAILBACK:
        return None
    # both pulls may have been of one point, and its bytes are all that were ever received of it
    pulled = {step.result["point"]: step.result.get("received_bytes", 0) for step in _pulls(run)}
    return sum(map(int, pulled.values()))


def _pulls(run: Run) -> list[Step]:
    return [step for step in run.steps if step.action == "await_pull" and step.state is StepState.DONE]


def _outage_seconds(run: Run) -> float | None:
    away = next((step.started_at for step in run.steps if step.action == "shut_down"), None)
    back = next((step.ended_at for step in run.steps if step.action == "await_home"), None)
    return None if away is None or back is None else round(back - away, 3)


def _step_to_json(step: Step) -> dict[str, Any]:
    seconds = None
    if step.started_at is not None and step.ended_at is not None:
        seconds = round(step.ended_at - step.started_at, 3)
    return {
        "name": step.name,
        "action": step.action,
        "server": step.args.get("server"),
        "instance": step.args.get("instance_id"),
        "stage": step.args.get("stage"),
        "state": step.state.value,
        "after": step.after,
        "closing": step.closing,
        "optional": step.optional,
        "started_at": step.started_at,
        "seconds": seconds,
        "error": step.error,
        "waits_for": step.waits_for,
        "result": step.result,
    }


def _instance_to_json(launch: Step, instances: Mapping[str, Instance]) -> dict[str, Any]:
    """What the site does not know was never launched, or is gone."""
    instance = instances.get(launch.args["instance_id"])
    absent = InstanceState.PENDING if launch.state is StepState.PENDING else InstanceState.GONE
    addresses = instance.addresses if instance else {}
    return {
        "id": launch.args["instance_id"],
        "server": launch.args["server"],
        "state": (instance.state if instance else absent).value,
        "addresses": {str(guest): f"{host}:{port}" for guest, (host, port) in addresses.items()},
    }
