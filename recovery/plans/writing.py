"""From a plan to YAML; what is as it would be without saying so is left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from recovery.gates import gate_to_json
from recovery.plans.model import (
    AUTOMATIC,
    DEFAULT_SCRIPT_SECONDS,
    Caps,
    FailureRule,
    Group,
    Plan,
    PlanServer,
    Script,
)
from recovery.points import LATEST


def dump_plan(plan: Plan) -> str:
    """The plan as YAML text that parse_plan reads back to an equal plan."""
    document = {
        "plan": plan.name,
        "point": None if plan.point == LATEST else plan.point,
        "rpo_seconds": plan.rpo_seconds,
        "one_instant_within_seconds": plan.one_instant_seconds,
        "on_failure": None if plan.on_failure == FailureRule() else str(plan.on_failure),
        "networks": dict(plan.networks) or None,
        "caps": _caps_to_json(plan.caps) or None,
        "pre": _scripts_to_json(plan.pre),
        "groups": [_group_to_json(group) for group in plan.groups],
        "post": _scripts_to_json(plan.post),
    }
    return yaml.safe_dump(_given(document), sort_keys=False, allow_unicode=True)


def _group_to_json(group: Group) -> dict[str, Any]:
    return _given(
        {
            "name": group.name,
            "after": None if group.after is None else list(group.after),
            "pre": _scripts_to_json(group.pre),
            "servers": [_server_to_json(server) for server in group.servers],
            "wait_seconds": group.wait_seconds or None,
            "post": _scripts_to_json(group.post),
        }
    )


def _server_to_json(server: PlanServer) -> dict[str, Any]:
    says_size = server.size != AUTOMATIC or (server.cpus is None and server.memory_mib is None)
    return _given(
        {
            "name": server.name,
            "size": server.size if says_size else None,
            "cpus": server.cpus,
            "memory_mib": server.memory_mib,
            "address": dict(server.addresses) or None,
            "ports": dict(server.ports) or None,
            "gates": [gate_to_json(gate) for gate in server.gates],
            "repair": None if server.repair else False,
            "devices": None if server.devices == AUTOMATIC else server.devices,
            "on_failure": None if server.on_failure is None else str(server.on_failure),
        }
    )


def _scripts_to_json(scripts: Sequence[Script]) -> list[dict[str, Any]] | None:
    return [_script_to_json(script) for script in scripts] or None


def _script_to_json(script: Script) -> dict[str, Any]:
    return _given(
        {
            "run": list(script.argv),
            "in_drills": script.in_drills or None,
            "timeout_seconds": None if script.timeout_seconds == DEFAULT_SCRIPT_SECONDS else script.timeout_seconds,
            "on_failure": None if script.on_failure is None else str(script.on_failure),
        }
    )


def _caps_to_json(caps: Caps) -> dict[str, Any]:
    return _given({"instances": caps.instances, "price_per_hour": caps.price_per_hour})


def _given(document: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in document.items() if value is not None}
