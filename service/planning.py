"""Plans and what becomes of them: found, planned into runs, priced, and asked whether they would work now."""

from __future__ import annotations

import copy
import dataclasses
import functools
import ipaddress
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from agent.protocol.errors import NotFound, UnderstudyError, UsageError
from agent.protocol.messages import Point
from recovery.actions import launch_spec
from recovery.checks import SiteFacts
from recovery.control import Server
from recovery.planner import Order, RandomIds, plan_failover
from recovery.plans import Caps, Plan, default_plan, parse_plan
from recovery.points import LATEST, LATEST_BOOTABLE
from recovery.preflight import Finding, Level, Reason, Situation, preflight, worst
from recovery.prices import RunPrice, add_up, over_caps, running_prices
from recovery.proofs import proven_points, proven_servers
from recovery.readiness import last_boots
from recovery.runs import Run, RunKind, RunState
from recovery.scripts import Scripts
from recovery.sites.contract import Site
from service.identity.gatekeeper import server_of
from service.store.plans import PlanStore
from service.store.points import PointStore
from service.store.rows import PlanCheck, ServerRow
from service.store.runs import RunRows
from service.store.servers import ServerStore

EVERY_SERVER = "*"
MAX_COPIES = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A run that has not been started, and what it was made from. `servers` and `points` are by server name."""

    run: Run
    plan: Plan
    servers: Mapping[str, Server]
    points: Mapping[str, Point]
    facts: SiteFacts


@dataclass(frozen=True, slots=True)
class _Views:
    """What planning reads of a tenant's estate: as large as the estate is."""

    servers: Callable[[str], list[ServerRow]]
    newest_points: Callable[[str], dict[str, Point]]
    runs: Callable[[str], list[Run]]
    caps: Callable[[str], Caps]

    def once(self) -> _Views:
        """The same, each read when it is first asked for, and kept."""
        once = functools.cache
        return _Views(once(self.servers), once(self.newest_points), once(self.runs), once(self.caps))


class PlanBook:
    """All calls block. `repairs`: is there boot repair? `witnesses`: is evidence of drills kept?"""

    def __init__(
        self,
        servers: ServerStore,
        points: PointStore,
        plans: PlanStore,
        runs: RunRows,
        site: Site,
        scripts: Scripts,
        now: Callable[[], float] = time.time,
        *,
        repairs: bool = False,
        witnesses: bool = False,
    ) -> None:
        self._servers = servers
        self._points = points
        self._plans = plans
        self._runs = runs
        self._site = site
        self._scripts = scripts
        self._now = now
        self._repairs = repairs
        self._witnesses = witnesses
        self._views = _Views(servers.all, points.newest, runs.runs, plans.caps)

    def at_one_moment(self) -> PlanBook:
        """For many checks in a row: they share what they read, so a thousand servers are not read a thousand times."""
        book = copy.copy(self)
        book._views = self._views.once()
        return book

    def apply(self, tenant: str, name: str, text: str, *, draft: bool) -> tuple[Plan, list[str]]:
        """Put a plan in place, or replace it; returns it and which of its servers nobody protects yet.

        Raises UsageError: it cannot be read, calls itself otherwise, or has such servers and is no `draft`."""
        plan = parse_plan(text)
        if plan.name != name:
            raise UsageError(f"the plan calls itself {plan.name!r}, not {name!r}", "use the name it has inside")
        known = {row.name for row in self._views.servers(tenant)}
        missing = [server.name for server in plan.servers if server.name not in known]
        if missing and not draft:
            there = ", ".join(sorted(known)[:10]) or "none yet"
            raise UsageError(
                f"plan {name}: no server {missing[0]!r} is protected (there are: {there})",
                "correct its name, or keep the plan until it is enrolled: --draft",
            )
        self._plans.put(tenant, name, text)
        return plan, missing

    def named(self, tenant: str, target: str) -> Plan:
        """The plan of that name, else the default plan of that server. Raises NotFound."""
        text = self._plans.find(tenant, target)
        if text is not None:
            return parse_plan(text, f"plan {target}")
        names = [row.name for row in self._views.servers(tenant)]
        if target in names:
            return default_plan(target)
        known = ", ".join(sorted({*self._plans.names(tenant), *names})[:10]) or "none yet"
        raise NotFound(f"there is no plan or server {target!r}", f"there are: {known}")

    def caps(self, tenant: str) -> Caps:
        return self._views.caps(tenant)

    def plan(
        self,
        tenant: str,
        kind: RunKind,
        target: str,
        choice: str | None,
        *,
        dead: Collection[str] = (),
        copies: int = 1,
    ) -> Planned:
        """The run that `panic`, `clone` or `migrate` would start, with its price. Raises NotFound, UsageError,
        RecoveryError.

        `dead`: servers whose sources somebody declared dead, `*` for all; all others are stopped by their agents."""
        plan = self.named(tenant, target)
        names = {server.name for server in plan.servers}
        strangers = sorted(set(dead) - names - {EVERY_SERVER})
        if strangers:
            raise UsageError(f"{target} has no server {strangers[0]!r}", f"it has: {', '.join(sorted(names))}")
        if not 1 <= copies <= MAX_COPIES:
            raise UsageError(f"{copies} copies cannot be made", f"ask for 1 to {MAX_COPIES}")
        alive = names - set(dead) if kind.takes_over and EVERY_SERVER not in dead else set()
        order = Order(alive=frozenset(alive), copies=copies, last_boots=last_boots(self._views.runs(tenant)))
        return self._planned(tenant, plan, kind, choice, order)

    def findings(self, tenant: str, planned: Planned) -> list[Finding]:
        """What speaks against this run; red first."""
        runs = self._views.runs(tenant)
        live = [run for run in runs if run.state is not RunState.ENDED]
        price = RunPrice(**planned.run.price)
        over = over_caps(price, planned.plan.caps, f"plan {planned.plan.name}")
        over += over_caps(price, self.caps(tenant), f"tenant {tenant}", running_prices(live))
        return preflight(
            Situation(
                plan=planned.plan,
                run=planned.run,
                servers=planned.servers,
                points=planned.points,
                facts=planned.facts,
                price=price,
                now=self._now(),
                proofs=proven_servers(runs),
                objections={
                    launch.args["server"]: self._site.objections(launch_spec(planned.run.id, launch.args))
                    for launch in planned.run.launches()
                },
                over_caps=over,
                missing_scripts=self._missing_scripts(planned.plan),
                taken=_taken(live),
            )
        )

    def check(self, tenant: str, target: str) -> PlanCheck:
        """Would a failover by this plan work now? Raises NotFound where there is no such plan or server."""
        plan = self.named(tenant, target)
        price = None
        try:
            planned = self._planned(tenant, plan, RunKind.FAILOVER, None)
        except UnderstudyError as error:
            findings = [Finding(level=Level.RED, reason=Reason.PLAN, text=error.message, hint=error.hint)]
        else:
            findings = self.findings(tenant, planned)
            price = planned.run.price
        return PlanCheck(
            plan=target,
            level=worst(findings).value,
            findings=[finding.to_json() for finding in findings],
            price=price,
            checked_at=self._now(),
        )

    def targets(self, tenant: str) -> list[str]:
        """All plans, and the servers that are in none."""
        return list(self.servers_by_target(tenant))

    def servers_by_target(self, tenant: str) -> dict[str, tuple[str, ...]]:
        """The names of the servers of all plans, and of those that are in none."""
        plans = {name: self.named(tenant, name).servers for name in self._plans.names(tenant)}
        found = {name: tuple(server.name for server in servers) for name, servers in plans.items()}
        planned = {name for names in found.values() for name in names}
        for row in self._views.servers(tenant):
            if row.name not in planned:
                found.setdefault(row.name, (row.name,))
        return found

    def _planned(
        self, tenant: str, plan: Plan, kind: RunKind, choice: str | None, order: Order | None = None
    ) -> Planned:
        now = self._now()
        wanted = {server.name for server in plan.servers}
        rows = {row.name: row for row in self._views.servers(tenant)}
        if wanted <= rows.keys():  # else the planner says which there are
            rows = {name: rows[name] for name in wanted}
        servers = {name: server_of(row, now) for name, row in rows.items()}
        points = self._points_of(tenant, plan, servers, choice or plan.point)
        facts = self._facts()
        run = plan_failover(plan, kind, servers, points, choice, facts, RandomIds(), now, order)
        specs = [launch_spec(run.id, launch.args) for launch in run.launches()]
        disk_bytes = sum(launch.args["size_bytes"] for launch in run.launches())
        run.price = add_up([self._site.price(spec) for spec in specs], disk_bytes).to_json()
        chosen = {launch.args["server"]: launch.args["point"] for launch in run.launches()}
        return Planned(
            run=run,
            plan=plan,
            servers=servers,
            points={
                name: next(point for point in points[name] if point.id == point_id) for name, point_id in chosen.items()
            },
            facts=facts,
        )

    def _points_of(
        self, tenant: str, plan: Plan, servers: Mapping[str, Server], choice: str
    ) -> dict[str, Sequence[Point]]:
        """By server, newest first: as many as the choice may fall on."""
        known = [wanted.name for wanted in plan.servers if wanted.name in servers]
        if choice == LATEST and plan.one_instant_seconds is None:
            newest = self._views.newest_points(tenant)
            return {name: [newest[servers[name].id]] if servers[name].id in newest else [] for name in known}
        found = {name: self._points.newest_first(servers[name].id) for name in known}
        if choice != LATEST_BOOTABLE:
            return dict(found)
        proven = proven_points(self._views.runs(tenant))
        return {
            name: [dataclasses.replace(point, bootable=proven.get(point.id)) for point in points]
            for name, points in found.items()
        }

    def _facts(self) -> SiteFacts:
        capacity = self._site.capacity()
        return SiteFacts(
            name=self._site.name,
            free_bytes=capacity.free_bytes,
            free_memory_mib=capacity.free_memory_mib,
            cpus=capacity.cpus,
            sizes=capacity.sizes,
            repairs=self._repairs,
            witnesses=self._witnesses,
        )

    def _missing_scripts(self, plan: Plan) -> list[str]:
        found = []
        for name in sorted({script.argv[0] for script in plan.scripts}):
            try:
                self._scripts.program(name)
            except NotFound as error:
                found.append(str(error))
        return found


def _taken(live: Sequence[Run]) -> dict[str, str]:
    """Addresses of what failovers run now, and which."""
    return {
        str(ipaddress.ip_interface(launch.args["address"]).ip): run.id
        for run in live
        if run.kind.takes_over
        for launch in run.launches()
        if launch.args.get("address")
    }
