"""A run as everybody sees it: API, console and command line. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recovery.planner import launch_steps
from recovery.runs import Run, RunKind, Step, StepState
from recovery.sites.contract import Instance, InstanceState


def run_to_json(run: Run, instances: Mapping[str, Instance]) -> dict[str, Any]:
    """The run in the contract's form. `instances` are the site's, by id, as they are now."""
    return {
        "id": run.id,
        "kind": run.kind.value,
        "plan": run.plan,
        "state": run.state.value,
        "created_at": run.created_at,
        "ended_at": run.ended_at,
        "failover_run": run.failover_run,
        "steps": [_step_to_json(step) for step in run.steps],
        "rto_seconds": rto_seconds(run),
        "instances": [_instance_to_json(step, instances) for step in launch_steps(run)],
    }


def rto_seconds(run: Run) -> float | None:
    """From the button to the last gate (without gates: the last launch) that held; None until all have, and for a
    failback, which waits for people."""
    ends = [step.ended_at for step in run.steps if step.action in ("launch", "gate")]
    if run.kind is RunKind.FAILBACK or any(step.state is not StepState.DONE for step in run.steps):
        return None
    return round(max(end for end in ends if end is not None) - run.created_at, 3)


def _step_to_json(step: Step) -> dict[str, Any]:
    seconds = None
    if step.started_at is not None and step.ended_at is not None:
        seconds = round(step.ended_at - step.started_at, 3)
    return {
        "name": step.name,
        "state": step.state.value,
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
