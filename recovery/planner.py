"""From a plan to the steps of a run. Pure: the same input gives the same steps, and a dry run prints just them."""

from __future__ import annotations

import hashlib
import re
import secrets
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from agent.protocol.errors import NotFound, UsageError
from agent.protocol.messages import Point
from recovery.checks import SiteFacts, refuse_without_space
from recovery.control import Server
from recovery.gates import asks_agent, gate_to_json
from recovery.naming import DEFAULT_PATTERN, copy_name
from recovery.plans import FailureRule, Group, Plan, PlanServer, Script
from recovery.plans.model import AUTOMATIC, depends_on, in_order
from recovery.points import choose_points
from recovery.readiness import Booted, why_ready
from recovery.runs import Run, RunKind, Step
from recovery.sites.contract import NetworkMode, Size
from recovery.sizing import addresses, sizes


class Ids(Protocol):
    """Where a plan's new names come from."""

    def run(self, kind: RunKind) -> str: ...

    def instance(self) -> str: ...

    def machine(self) -> str:
        """A UUID: the hardware's, as the guest sees it."""
        ...


def new_seed() -> str:
    return secrets.token_hex(16)


class SeededIds:
    """The same seed gives the same names one after the other: what is shown before a run is what it does. Nobody can
    tell the seed from the names, nor a name from another."""

    def __init__(self, seed: str) -> None:
        """Raises UsageError."""
        if not re.fullmatch(r"[0-9a-f]{32}", seed):
            raise UsageError(f"seed is {seed[:100]!r}, and should be 32 hexadecimal digits", "leave it out")
        self._seed = bytes.fromhex(seed)
        self._given = 0

    def run(self, kind: RunKind) -> str:
        return f"{kind}-{self._next(4).hex()}"  # short: it is typed at 3 a.m.

    def instance(self) -> str:
        return f"i-{self._next(6).hex()}"

    def machine(self) -> str:
        return str(uuid.UUID(bytes=self._next(16), version=4))

    def _next(self, size_bytes: int) -> bytes:
        self._given += 1
        return hashlib.blake2b(self._given.to_bytes(8), key=self._seed, digest_size=size_bytes).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What goes into a run beside its plan. `alive`: servers whose sources nobody declared dead, so their own agents
    have to stop them first. `copies` of each server, for a clone, and what these call themselves (recovery.naming).
    `last_boots` by server: see recovery.readiness."""

    alive: frozenset[str] = frozenset()
    copies: int = 1
    host_names: str = DEFAULT_PATTERN
    last_boots: Mapping[str, Booted] = field(default_factory=dict)


def plan_failover(
    plan: Plan,
    kind: RunKind,
    servers: Mapping[str, Server],
    points: Mapping[str, Sequence[Point]],
    choice: str | None,
    facts: SiteFacts,
    ids: Ids,
    now: float,
    order: Order | None = None,
) -> Run:
    """The run (a drill, failover, clone or migration) that boots the plan's servers, group after group.

    `servers` and `points` are by server name, points newest first; `choice` None: the point that the plan says (see
    recovery.points); `now` is in seconds since 1970.
    Raises NotFound (server or point), UsageError, or RecoveryError when it could not work at all."""
    for wanted in plan.servers:
        if wanted.name not in servers:
            known = ", ".join(sorted(servers)) or "none"
            others = f"; or boot the others: --without {wanted.name}" if len(plan.servers) > 1 else ""
            hint = f"there are: {known}{others}"
            raise NotFound(f"plan {plan.name}: no server {wanted.name!r} is protected", hint)
    its_points = {wanted.name: points[wanted.name] for wanted in plan.servers}
    chosen = choose_points(its_points, choice or plan.point, plan.one_instant_seconds)
    refuse_without_space(plan, facts)
    run_id = ids.run(kind)
    steps = _Planner(plan, kind, servers, chosen, facts, ids, order or Order()).steps()
    tenant = servers[plan.servers[0].name].tenant
    return Run(id=run_id, tenant=tenant, kind=kind, plan=plan.name, steps=steps, created_at=now)


class _Planner:
    """Gathers the steps; a position is a step's place among them."""

    def __init__(
        self,
        plan: Plan,
        kind: RunKind,
        servers: Mapping[str, Server],
        chosen: Mapping[str, Point],
        facts: SiteFacts,
        ids: Ids,
        order: Order,
    ) -> None:
        self._plan = plan
        self._kind = kind
        self._servers = servers
        self._chosen = chosen
        self._repairs = facts.repairs
        self._bus = facts.bus
        self._order = order
        self._witnesses = facts.witnesses
        self._ids = ids
        memory_mib = facts.free_memory_mib
        shared = None if memory_mib is None else memory_mib // order.copies
        self._sizes = sizes(plan, servers, replace(facts, free_memory_mib=shared))
        self._mode = RunKind.FAILOVER if kind.takes_over else RunKind.DRILL
        self._addresses = addresses(plan, self._mode, servers)
        self._titles: dict[str, str] = {}
        self._host_names: set[str] = set()
        self._steps: list[Step] = []

    def steps(self) -> list[Step]:
        groups = self._plan.groups
        begin = self._scripts(self._plan.pre, [], "before the plan")
        needs = depends_on(groups)
        ends: dict[int, list[int]] = {}
        for at in in_order(needs):
            after = [end for need in needs[at] for end in ends[need]]
            ends[at] = self._group(groups[at], groups[at].name or f"group {at + 1}", after or begin)
        waited_for = {need for its in needs for need in its}
        last = [at for at in ends if at not in waited_for]
        end = self._scripts(self._plan.post, [end for at in last for end in ends[at]], "after the plan")
        if self._kind is RunKind.MIGRATE:
            self._retire_sources(end)
        if self._kind is RunKind.DRILL and self._witnesses:
            self._look_back()
        return self._steps

    def _group(self, group: Group, name: str, after: list[int]) -> list[int]:
        """Its steps; what comes after the group comes after the positions returned."""
        after = self._scripts(group.pre, after, f"before {name}")
        copies = range(1, self._order.copies + 1)
        pairs = [(wanted, self._launch(wanted, copy)) for wanted in group.servers for copy in copies]
        # Before anything boots: what a source that is still alive pushes from here on is refused.
        before = [self._fence(wanted, launch, after) for wanted, launch in pairs]
        for at, (wanted, launch) in enumerate(pairs):
            before[at] = self._repair(wanted, launch, at % self._order.copies + 1, before[at])
        ends = [
            [self._add(launch, earlier, self._rule(wanted))]
            for (wanted, launch), earlier in zip(pairs, before, strict=True)
        ]
        for at, (wanted, launch) in enumerate(pairs):
            ends[at] = self._gates(wanted, launch, ends[at])
        end = [position for its_ends in ends for position in its_ends] or after  # servers may have been left out
        if group.wait_seconds and group.servers:
            wait = Step(name=f"wait after {name}", action="wait", args={"seconds": group.wait_seconds, "group": name})
            end = [self._add(wait, end, FailureRule())]
        return self._scripts(group.post, end, f"after {name}")

    def _launch(self, wanted: PlanServer, copy: int) -> Step:
        server, point, size = self._servers[wanted.name], self._chosen[wanted.name], self._sizes[wanted.name]
        args = {
            "server": server.name,
            "server_id": server.id,
            "instance_id": self._ids.instance(),
            "machine_id": self._ids.machine(),
            "point": point.id,
            "taken_at": point.taken_at,
            "volumes": len(point.volumes),
            "sources": [volume.path for volume in point.volumes],
            "size_bytes": point.size_bytes,
            **self._settings(wanted, size),
            "uefi": server.uefi,
            "boot_digest": server.boot_digest,
            "devices": None if wanted.devices == AUTOMATIC else wanted.devices,
        }
        title = server.name if self._order.copies == 1 else f"{server.name} (copy {copy})"
        self._titles[args["instance_id"]] = title
        return Step(name=f"launch {title}", action="launch", args=args)

    def _settings(self, wanted: PlanServer, size: Size) -> dict[str, Any]:
        network = NetworkMode.REAL if self._kind.takes_over else NetworkMode.ISOLATED
        ports = wanted.all_ports if self._order.copies == 1 else dict.fromkeys(wanted.all_ports, 0)
        return {
            "cpus": size.cpus,
            "memory_mib": size.memory_mib,
            "size": None if wanted.size == AUTOMATIC else wanted.size,
            "network": network.value,
            "network_name": self._plan.networks.get(self._mode.value),
            "address": self._addresses.get(wanted.name),
            "ports": {str(guest): site for guest, site in ports.items()},  # JSON's keys are texts
        }

    def _fence(self, wanted: PlanServer, launch: Step, after: list[int]) -> list[int]:
        if not self._kind.takes_over:
            return after
        # nothing boots beside a source that has not been fenced, whatever the plan says of failures
        rule = FailureRule(self._rule(wanted).retries)
        if wanted.name in self._order.alive:
            stop = Step(name=f"stop the source of {wanted.name}", action="fence_source", args=who(launch))
            last = Step(name=f"last point of {wanted.name}", action="last_point", args=who(launch))
            after = [self._add(last, [self._add(stop, after, rule)], rule)]
        # the epoch that it was planned at: who was overtaken by another handover takes nothing over
        args = {**who(launch), "epoch": self._servers[wanted.name].epoch}
        return [self._add(Step(name=f"fence {wanted.name}", action="hand_to_instance", args=args), after, rule)]

    def _retire_sources(self, after: list[int]) -> None:
        for launch in [step for step in self._steps if step.action == "launch"]:
            name = f"retire the source of {launch.args['server']}"
            self._add(Step(name=name, action="retire_source", args=who(launch)), after, FailureRule())

    def _repair(self, wanted: PlanServer, launch: Step, copy: int, after: list[int]) -> list[int]:
        if not (self._repairs and wanted.repair):
            return after
        point = "" if wanted.name in self._order.alive else launch.args["point"]  # there will be a newer one
        bus = launch.args["devices"] or self._bus
        ready = why_ready(self._servers[wanted.name], point, bus, self._order.last_boots.get(wanted.name))
        args = dict(launch.args)
        if self._kind is RunKind.CLONE:  # also where it is ready to boot
            args |= {"host_name": self._host_name(wanted, copy), "record": launch.args["instance_id"]}
        elif ready:
            args["skip"] = ready
        step = Step(name=f"repair {self._titles[args['instance_id']]}", action="repair", args=args)
        # a server that could not be repaired may boot all the same
        return [self._add(step, after, FailureRule(self._rule(wanted).retries, goes_on=True))]

    def _host_name(self, wanted: PlanServer, copy: int) -> str:
        server = self._servers[wanted.name]
        name = copy_name(self._order.host_names, server.name, copy, windows=server.windows)
        if name.lower() in self._host_names:
            raise UsageError(
                f"two copies would be called {name}", "put {server} and {copy} into --host-name, or leave it out"
            )
        self._host_names.add(name.lower())
        return name

    def _gates(self, wanted: PlanServer, launch: Step, after: list[int]) -> list[int]:
        for gate in wanted.gates:
            if not self._kind.takes_over and asks_agent(gate):
                continue  # in isolation the guest's agent reaches nobody
            args = {**who(launch), "gate": gate_to_json(gate)}
            title = self._titles[launch.args["instance_id"]]
            step = Step(name=f"gate {title}: {gate}", action="gate", args=args)
            after = [self._add(step, after, self._rule(wanted))]
        return after

    def _scripts(self, scripts: Sequence[Script], after: list[int], when: str) -> list[int]:
        for script in scripts:
            if not self._kind.takes_over and not script.in_drills:
                continue
            args = {"argv": list(script.argv), "timeout_seconds": script.timeout_seconds}
            step = Step(name=f"script {script.argv[0]} {when}", action="script", args=args)
            after = [self._add(step, after, script.on_failure or self._plan.on_failure)]
        return after

    def _look_back(self) -> None:
        """What makes a drill a proof, however its gates ended."""
        launches = [step for step in self._steps if step.action == "launch"]
        pictures = [self._closing(f"picture of {step.args['server']}", "picture", who(step), []) for step in launches]
        before: list[int] = []
        for step in launches:  # one after the other: each takes a worker's memory
            args = {name: step.args[name] for name in ("server", "server_id", "point", "volumes")}
            before = [self._closing(f"filesystems of {step.args['server']}", "filesystems", args, before)]
        self._closing("evidence", "evidence", {}, [*pictures, *before])

    def _closing(self, name: str, action: str, args: dict[str, Any], after: list[int]) -> int:
        # evidence is written of what failed as well
        return self._add(Step(name=name, action=action, args=args, closing=True), after, FailureRule(goes_on=True))

    def _rule(self, wanted: PlanServer) -> FailureRule:
        return wanted.on_failure or self._plan.on_failure

    def _add(self, step: Step, after: list[int], rule: FailureRule) -> int:
        step.after, step.retries, step.optional = list(after), rule.retries, rule.goes_on
        self._steps.append(step)
        return len(self._steps) - 1


def who(launch: Step) -> dict[str, Any]:
    """What the steps about a launched server have in common."""
    return {name: launch.args[name] for name in ("server", "server_id", "instance_id", "machine_id")}
