"""From a plan to the steps of a run. Pure: the same input gives the same steps, and a dry run prints just them."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

from agent.protocol.errors import Conflict, NotFound, RecoveryError, UsageError
from agent.protocol.messages import Point
from recovery.checks import Level, SiteFacts, preflight
from recovery.control import Server
from recovery.gates import gate_from_json, gate_to_json
from recovery.plans import Plan, PlanServer
from recovery.runs import Run, RunKind, RunState, Step, StepState
from recovery.sites.contract import NetworkMode

LATEST = "latest"
MIN_PREFIX_CHARACTERS = 4
TAKE_POINT_SECONDS = 900.0
AGENT_SILENT_SECONDS = 60.0
SHUT_DOWN_SECONDS = 180.0


class Ids(Protocol):
    """Where a plan's new names come from."""

    def run(self, kind: RunKind) -> str: ...

    def instance(self) -> str: ...

    def machine(self) -> str:
        """A UUID: the hardware's, as the guest sees it."""
        ...


class RandomIds:
    def run(self, kind: RunKind) -> str:
        return f"{kind}-{secrets.token_hex(4)}"  # short: it is typed at 3 a.m.

    def instance(self) -> str:
        return f"i-{secrets.token_hex(6)}"

    def machine(self) -> str:
        return str(uuid.uuid4())


def choose_point(server: str, points: Sequence[Point], choice: str) -> Point:
    """The point that an operator means: `latest`, an id or its unique beginning, or an ISO time (UTC unless it says
    otherwise): the newest point at or before it. `points` are newest first.

    Raises NotFound, or UsageError when several are meant."""
    if not points:
        raise NotFound(f"there is no recovery point of {server}", f"make one: understudy take {server}")
    if choice == LATEST:
        return points[0]
    exact = [point for point in points if point.id == choice]
    started = [point for point in points if len(choice) >= MIN_PREFIX_CHARACTERS and point.id.startswith(choice)]
    if exact or len(started) == 1:
        return (exact or started)[0]
    try:
        instant = _instant(choice)
    except ValueError:
        if started:
            ids = ", ".join(point.id for point in started[:5])
            raise UsageError(f"{len(started)} points of {server} begin with {choice!r}: {ids}", "give more") from None
        hint = f"see: understudy points {server}; or use `latest`, or a time like 2026-01-31T14:30:00Z"
        raise NotFound(f"there is no point {choice!r} of {server}", hint) from None
    for point in points:
        if _instant(point.taken_at) <= instant:
            return point
    oldest = points[-1]
    raise NotFound(f"{server} has no point as old as {choice}", f"the oldest is {oldest.id} of {oldest.taken_at}")


def _instant(text: str) -> datetime:
    instant = datetime.fromisoformat(text)
    return instant if instant.tzinfo else instant.replace(tzinfo=UTC)


def plan_failover(
    plan: Plan,
    kind: RunKind,
    servers: Mapping[str, Server],
    points: Mapping[str, Sequence[Point]],
    choice: str,
    facts: SiteFacts,
    ids: Ids,
    now: float,
) -> Run:
    """The run (a drill or a failover) that boots the plan's servers, group after group.

    `servers` and `points` are by server name, points newest first; `now` is in seconds since 1970.
    Raises NotFound (server or point), UsageError, or RecoveryError when the pre-flight is red."""
    for wanted in plan.servers:
        if wanted.name not in servers:
            known = ", ".join(sorted(servers)) or "none"
            raise NotFound(f"plan {plan.name}: no server {wanted.name!r} is protected", f"there are: {known}")
    chosen = {wanted.name: choose_point(wanted.name, points[wanted.name], choice) for wanted in plan.servers}
    red = [finding for finding in preflight(plan, chosen, facts, now) if finding.level is Level.RED]
    if red:
        raise RecoveryError(red[0].text, red[0].hint)

    run_id = ids.run(kind)
    steps: list[Step] = []
    for group in plan.groups:
        launches = [_launch(wanted, kind, servers[wanted.name], chosen[wanted.name], ids) for wanted in group.servers]
        if kind is RunKind.FAILOVER:
            # Before anything boots: what a source that is still alive pushes from here on is refused.
            steps += [_hand_to_instance(launch) for launch in launches]
        steps += launches
        for wanted, launch in zip(group.servers, launches, strict=True):
            steps += _gates(wanted, launch)
    tenant = servers[plan.servers[0].name].tenant
    return Run(id=run_id, tenant=tenant, kind=kind, plan=plan.name, steps=steps, created_at=now)


def _launch(wanted: PlanServer, kind: RunKind, server: Server, point: Point, ids: Ids) -> Step:
    network = NetworkMode.REAL if kind is RunKind.FAILOVER else NetworkMode.ISOLATED
    args = {
        "server": server.name,
        "server_id": server.id,
        "instance_id": ids.instance(),
        "machine_id": ids.machine(),
        "point": point.id,
        "taken_at": point.taken_at,
        "volumes": len(point.volumes),
        "cpus": wanted.cpus,
        "memory_mib": wanted.memory_mib,
        "network": network.value,
        "ports": {str(guest): site for guest, site in wanted.all_ports.items()},  # JSON's keys are texts
        "uefi": server.uefi,
    }
    return Step(name=f"launch {server.name}", action="launch", args=args)


def _hand_to_instance(launch: Step) -> Step:
    return Step(name=f"fence {launch.args['server']}", action="hand_to_instance", args=_who(launch))


def _gates(wanted: PlanServer, launch: Step) -> Iterator[Step]:
    for gate in wanted.gates:
        args = {**_who(launch), "gate": gate_to_json(gate)}
        yield Step(name=f"gate {wanted.name}: {gate}", action="gate", args=args)


def _who(launch: Step) -> dict[str, Any]:
    return {name: launch.args[name] for name in ("server", "server_id", "instance_id", "machine_id")}


def plan_failback(failover_run: Run, server: Server, ids: Ids, now: float) -> Run:
    """The way home of one server that `failover_run` booted. Raises Conflict or NotFound."""
    if failover_run.kind is not RunKind.FAILOVER:
        raise Conflict(f"{failover_run.id} is a {failover_run.kind}, and only a failover can be brought home")
    if failover_run.state not in (RunState.SUCCEEDED, RunState.FAILED):
        raise Conflict(
            f"{failover_run.id} is {failover_run.state}", "a failover can be brought home once it has come up"
        )
    launches = [step for step in launch_steps(failover_run) if step.args["server_id"] == server.id]
    if not launches:
        raise NotFound(f"{failover_run.id} did not boot {server.name}")
    if launches[0].state is not StepState.DONE:
        hint = f"try that again: understudy retry {failover_run.id}; or give it up: understudy end {failover_run.id}"
        raise Conflict(f"{failover_run.id} never got {server.name} to boot", hint)

    who = _who(launches[0])
    name = server.name

    def step(title: str, action: str, **more: Any) -> Step:
        return Step(name=title.format(name), action=action, args={**who, **more})

    run_id = ids.run(RunKind.FAILBACK)
    steps = [
        step(
            "take a point of {}",
            "take_point",
            label=f"{run_id}: before the shutdown",
            limit_seconds=TAKE_POINT_SECONDS,
            silent_seconds=AGENT_SILENT_SECONDS,
        ),
        step("copy {} home while it runs", "await_pull"),
        # `launch` is what is booted again if the failback is called off
        step("shut down {}", "shut_down", limit_seconds=SHUT_DOWN_SECONDS, launch=launches[0].args),
        step("take the last point of {}", "capture", label=f"{run_id}: final"),
        step("copy the last changes of {} home", "await_pull"),
        step("hand {} home", "hand_home"),
        step("boot {} at home", "await_home"),
        step("settle {}", "settle"),
        step("retire the instance of {}", "retire"),
    ]
    return Run(
        id=run_id,
        tenant=failover_run.tenant,
        kind=RunKind.FAILBACK,
        plan=failover_run.plan,
        steps=steps,
        created_at=now,
        failover_run=failover_run.id,
    )


def launch_steps(run: Run) -> list[Step]:
    return [step for step in run.steps if step.action == "launch"]


def describe(step: Step) -> str:
    """What the step does, as one line for an operator: a dry run is these lines."""
    args = step.args
    return f"{args['server']}: {_DESCRIPTIONS[step.action](args)}"


def _describe_launch(args: Mapping[str, Any]) -> str:
    volumes = "1 volume" if args["volumes"] == 1 else f"{args['volumes']} volumes"
    network = "the real network" if args["network"] == NetworkMode.REAL else "an isolated network"
    ports = [f"{guest} at {site or 'any port'}" for guest, site in args["ports"].items()]
    reach = f", its port {', '.join(ports)}" if ports else ""
    return (
        f"boot point {args['point']} of {args['taken_at']} ({volumes}) as {args['instance_id']}"
        f" with {args['cpus']} CPUs and {args['memory_mib']} MiB on {network}{reach}"
    )


def _describe_gate(args: Mapping[str, Any]) -> str:
    gate = gate_from_json(args["gate"])
    return f"wait up to {gate.timeout_seconds:g} s for {gate}"


_DESCRIPTIONS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "hand_to_instance": lambda args: (
        f"raise the epoch: only {args['instance_id']} may push from here on, a source that returns stands down"
    ),
    "launch": _describe_launch,
    "gate": _describe_gate,
    "take_point": lambda args: (
        f"take a point of {args['instance_id']} while it runs (if its agent does not answer: use the newest there is)"
    ),
    "await_pull": lambda _: "wait until the repaired machine has pulled that point",
    "shut_down": lambda args: f"shut {args['instance_id']} down; the service is away until it boots at home",
    "capture": lambda args: f"take the last point from the stopped {args['instance_id']}",
    "hand_home": lambda _: "raise the epoch: the identity belongs to the machine at home",
    "await_home": lambda _: "wait until the repaired machine has booted and its agent made contact",
    "settle": lambda _: "protected again, from home",
    "retire": lambda args: f"remove {args['instance_id']}",
}
