"""Plans and what becomes of them: found, planned into runs, priced, and asked whether they would work now."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agent.protocol.errors import Conflict, NotFound, UnderstudyError, UsageError
from agent.protocol.messages import Point
from recovery.actions import launch_spec
from recovery.checks import refuse_conflict
from recovery.control import Server
from recovery.naming import DEFAULT_PATTERN
from recovery.planner import Order, SeededIds, new_seed, plan_failover
from recovery.plans import Caps, Plan, parse_plan, without
from recovery.points import LATEST
from recovery.preflight import Finding, Level, Reason, Situation, preflight, worst
from recovery.prices import RunPrice, add_up, over_caps, running_prices
from recovery.runs import Run, RunKind
from recovery.scripts import Scripts
from recovery.sites.contract import Devices
from service.estate import Estate, Sources
from service.store.rows import PlanCheck

EVERY_SERVER = "*"
MAX_COPIES = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A run that has not been started, and what it was made from. `servers` and `points` are those of the plan, by
    server name; `estate` is the look at everything that it was planned by. The same `seed` makes the same names."""

    run: Run
    plan: Plan
    servers: Mapping[str, Server]
    points: Mapping[str, Point]
    estate: Estate
    seed: str


class PlanBook:
    """All calls block."""

    def __init__(self, sources: Sources, scripts: Scripts, now: Callable[[], float] = time.time) -> None:
        self._sources = sources
        self._scripts = scripts
        self._now = now

    def apply(self, tenant: str, name: str, text: str, *, draft: bool) -> tuple[Plan, list[str]]:
        """Put a plan in place, or replace it; returns it and which of its servers nobody protects yet.

        Raises UsageError: it cannot be read, calls itself otherwise, or has such servers and is no `draft`."""
        plan = parse_plan(text)
        if plan.name != name:
            raise UsageError(f"the plan calls itself {plan.name!r}, not {name!r}", "use the name it has inside")
        known = self.estate(tenant).servers
        missing = [server.name for server in plan.servers if server.name not in known]
        if missing and not draft:
            there = ", ".join(sorted(known)[:10]) or "none yet"
            raise UsageError(
                f"plan {name}: no server {missing[0]!r} is protected (there are: {there})",
                "correct its name, or keep the plan until it is enrolled: --draft",
            )
        self._sources.plans.put(tenant, name, text)
        return plan, missing

    def estate(self, tenant: str) -> Estate:
        """A new look at what the tenant has."""
        return Estate(tenant, self._sources, self._now())

    def caps(self, tenant: str) -> Caps:
        return self._sources.plans.caps(tenant)

    def plan(
        self,
        tenant: str,
        kind: RunKind,
        target: str,
        choice: str | None,
        *,
        dead: Collection[str] = (),
        copies: int = 1,
        host_names: str | None = None,
        left_out: Collection[str] = (),
        seed: str | None = None,
    ) -> Planned:
        """The run that `panic`, `clone` or `migrate` would start, with its price. Raises NotFound, UsageError,
        RecoveryError.

        `dead`: servers whose sources somebody declared dead, `*` for all; all others are stopped by their agents.
        `host_names`: what copies are called, as recovery.naming has it; none: as it has it without.
        `left_out`: servers of the plan that this run does without. `seed`: of a run that was planned before; none: a
        new one."""
        estate = self.estate(tenant)
        plan = without(estate.plan(target), left_out)
        names = {server.name for server in plan.servers}
        strangers = sorted(set(dead) - names - {EVERY_SERVER})
        if strangers:
            raise UsageError(f"{target} has no server {strangers[0]!r}", f"it has: {', '.join(sorted(names))}")
        if not 1 <= copies <= MAX_COPIES:
            raise UsageError(f"{copies} copies cannot be made", f"ask for 1 to {MAX_COPIES}")
        if host_names and not estate.facts.repairs:
            raise UsageError(
                "this service has no boot repair, so copies keep the names of their servers",
                "leave --host-name out, or see in the service's log why it has none",
            )
        alive = names - set(dead) if kind.takes_over and EVERY_SERVER not in dead else set()
        order = Order(
            alive=frozenset(alive),
            copies=copies,
            host_names=host_names or DEFAULT_PATTERN,
            last_boots=estate.last_boots(names),
        )
        return self._planned(estate, plan, kind, choice, order, seed)

    def findings(self, planned: Planned) -> list[Finding]:
        """What speaks against this run; red first."""
        estate, run = planned.estate, planned.run
        price = RunPrice(**run.price)
        over = over_caps(price, planned.plan.caps, f"plan {planned.plan.name}")
        over += over_caps(price, estate.caps, f"tenant {estate.tenant}", running_prices(estate.live))
        return preflight(
            Situation(
                plan=planned.plan,
                run=run,
                servers=planned.servers,
                points=planned.points,
                facts=estate.facts,
                price=price,
                now=estate.now,
                proofs=estate.proofs,
                objections={
                    launch.args["server"]: self._sources.site.objections(launch_spec(run.id, launch.args))
                    for launch in run.launches()
                },
                over_caps=over,
                missing_scripts=self._missing_scripts(planned.plan),
                missing_packages=estate.missing_packages,
                missing_drivers={
                    wanted.name: estate.missing_drivers(wanted.name)
                    for wanted in planned.plan.servers
                    if wanted.repair and wanted.devices != Devices.AHCI
                },
                taken=_taken(estate.live),
                in_the_way=_in_the_way(run, estate.live),
            )
        )

    def check(self, tenant: str, target: str) -> PlanCheck:
        """Would a failover by this plan work now? Raises NotFound where there is no such plan or server."""
        return self._check(self.estate(tenant), target)

    def checks(self, tenant: str) -> Iterator[PlanCheck]:
        """The same for all plans, and the servers that are in none, from one look at all that the tenant has."""
        estate = self.estate(tenant)
        return (self._check(estate, target) for target in estate.servers_by_target)

    def _check(self, estate: Estate, target: str) -> PlanCheck:
        price = None
        try:
            plan = estate.plan(target)
        except UsageError as error:
            hint = f"{error.hint}; then put it in place anew: understudy plan apply FILE"
            findings = [Finding(level=Level.RED, reason=Reason.PLAN, text=error.message, hint=hint)]
            return _checked(target, findings, None, estate.now)
        try:
            planned = self._planned(estate, plan, RunKind.FAILOVER, None)
        except UnderstudyError as error:
            findings = [Finding(level=Level.RED, reason=Reason.PLAN, text=error.message, hint=error.hint)]
        else:
            findings = self.findings(planned)
            price = planned.run.price
        return _checked(target, findings, price, estate.now)

    def _planned(
        self,
        estate: Estate,
        plan: Plan,
        kind: RunKind,
        choice: str | None,
        order: Order | None = None,
        seed: str | None = None,
    ) -> Planned:
        seed = seed or new_seed()
        wanted = {server.name for server in plan.servers}
        points = _points(estate, plan, choice or plan.point)
        ids = SeededIds(seed)
        run = plan_failover(plan, kind, estate.servers, points, choice, estate.facts, ids, estate.now, order)
        prices = [self._sources.site.price(launch_spec(run.id, launch.args)) for launch in run.launches()]
        disk_bytes = sum(launch.args["size_bytes"] for launch in run.launches())
        run.price = add_up(prices, disk_bytes).to_json()
        chosen = {launch.args["server"]: launch.args["point"] for launch in run.launches()}
        return Planned(
            run=run,
            plan=plan,
            servers={name: server for name, server in estate.servers.items() if name in wanted},
            points={
                name: next(point for point in points[name] if point.id == point_id) for name, point_id in chosen.items()
            },
            estate=estate,
            seed=seed,
        )

    def _missing_scripts(self, plan: Plan) -> list[str]:
        found = []
        for name in sorted({script.argv[0] for script in plan.scripts}):
            try:
                self._scripts.program(name)
            except NotFound as error:
                found.append(str(error))
        return found


def _points(estate: Estate, plan: Plan, choice: str) -> dict[str, Sequence[Point]]:
    """By server, newest first: as many as the choice may fall on."""
    newest_will_do = choice == LATEST and plan.one_instant_seconds is None
    known = [wanted.name for wanted in plan.servers if wanted.name in estate.servers]
    return {name: estate.newest_point(name) if newest_will_do else estate.points(name) for name in known}


def _checked(target: str, findings: list[Finding], price: dict[str, Any] | None, now: float) -> PlanCheck:
    return PlanCheck(
        plan=target,
        level=worst(findings).value,
        findings=[finding.to_json() for finding in findings],
        price=price,
        checked_at=now,
    )


def _in_the_way(run: Run, live: Sequence[Run]) -> Conflict | None:
    try:
        refuse_conflict(run, live)
    except Conflict as error:
        return error
    return None


def _taken(live: Sequence[Run]) -> dict[str, str]:
    """Addresses of what failovers run now, and which."""
    return {
        str(ipaddress.ip_interface(launch.args["address"]).ip): run.id
        for run in live
        if run.kind.takes_over
        for launch in run.launches()
        if launch.args.get("address")
    }
