"""The desk where runs are asked for: finds the plan and the points, plans, and gives the run to the executor."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from agent.protocol.errors import Conflict, NotFound, UsageError
from recovery.actions import launch_spec
from recovery.checks import Finding, SiteFacts, booted_servers, home_servers, preflight
from recovery.executor import Executor
from recovery.planner import RandomIds, choose_point, describe, launch_steps, plan_failback, plan_failover
from recovery.plans import Plan, default_plan, parse_plan
from recovery.report import run_to_json
from recovery.runs import Run, RunKind, RunState
from recovery.sites.contract import Site
from service.identity.gatekeeper import server_of
from service.store.plans import PlanStore
from service.store.points import PointStore
from service.store.runs import RunRows
from service.store.servers import ServerStore


class RunDesk:
    """All calls block. Runs of another tenant are not found."""

    def __init__(
        self,
        servers: ServerStore,
        points: PointStore,
        plans: PlanStore,
        runs: RunRows,
        site: Site,
        executor: Executor,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._servers = servers
        self._points = points
        self._plans = plans
        self._runs = runs
        self._site = site
        self._executor = executor
        self._now = now

    # --- drill and failover ---

    def plan(self, tenant: str, kind: RunKind, target: str, choice: str) -> Run:
        """The run that `panic` would start. Raises NotFound, UsageError, RecoveryError (pre-flight)."""
        now = self._now()
        servers = {row.name: server_of(row, now) for row in self._servers.all(tenant)}
        plan = self._plan_of(tenant, target, servers.keys())
        points = {
            wanted.name: self._points.newest_first(servers[wanted.name].id)
            for wanted in plan.servers
            if wanted.name in servers
        }
        return plan_failover(plan, kind, servers, points, choice, self._facts(), RandomIds(), now)

    def findings(self, tenant: str, run: Run) -> list[Finding]:
        """What speaks against this run without forbidding it."""
        plan = self._plan_of(tenant, run.plan, booted_servers(run).values())
        chosen = {
            str(step.args["server"]): choose_point(
                step.args["server"], self._points.newest_first(step.args["server_id"]), step.args["point"]
            )
            for step in launch_steps(run)
        }
        return preflight(plan, chosen, self._facts(), self._now())

    def start(self, run: Run) -> Run:
        """Raises Conflict."""
        self._executor.start(run)
        return self._runs.get(run.id)

    # --- failback ---

    def plan_failback(self, tenant: str, failover_id: str, server_name: str | None) -> Run:
        """The way home of one server. Raises NotFound, Conflict, UsageError (several are away, none is named)."""
        failover = self.get(tenant, failover_id)
        server = self._servers.by_name(tenant, self._name_to_bring_home(failover, server_name))
        return plan_failback(failover, server_of(server, self._now()), RandomIds(), self._now())

    def fail_back(self, tenant: str, failover_id: str, server_name: str | None) -> Run:
        """Begin the way home, or go on with the one that was begun. Raises as plan_failback."""
        failover = self.get(tenant, failover_id)
        begun = [
            run
            for run in self._runs.runs(tenant)
            if run.failover_run == failover.id
            and run.state in (RunState.RUNNING, RunState.FAILED)
            and server_name in (None, *booted_servers(run).values())
        ]
        if begun:
            if begun[0].state is RunState.FAILED:
                self._executor.retry(begun[0].id)
            return self._runs.get(begun[0].id)
        return self.start(self.plan_failback(tenant, failover_id, server_name))

    # --- any run ---

    def get(self, tenant: str, run_id: str) -> Run:
        run = self._runs.get(run_id)
        if run.tenant != tenant:
            raise NotFound(f"there is no run {run_id}", "see: understudy runs")
        return run

    def all(self, tenant: str) -> list[Run]:
        """Newest first."""
        return self._runs.runs(tenant)

    def retry(self, tenant: str, run_id: str) -> Run:
        self._executor.retry(self.get(tenant, run_id).id)
        return self._runs.get(run_id)

    def end(self, tenant: str, run_id: str, *, force: bool) -> Run:
        """Begin to remove all that the run made. Raises Conflict, saying what would be lost."""
        self._executor.end(self.get(tenant, run_id).id, force=force)
        return self._runs.get(run_id)

    def to_json(self, runs: list[Run]) -> list[dict[str, Any]]:
        """The runs in the contract's form, with what each step does in words."""
        instances = {instance.instance_id: instance for instance in self._site.instances()}
        documents = []
        for run in runs:
            document = run_to_json(run, instances) | {"version": run.version}
            for step, entry in zip(run.steps, document["steps"], strict=True):
                entry["description"] = describe(step)
            documents.append(document)
        return documents

    def dry_run_to_json(self, tenant: str, run: Run) -> dict[str, Any]:
        """What a run that has not been started would do, use and risk."""
        (document,) = self.to_json([run])
        prices = [self._site.price(launch_spec(run.id, step.args)) for step in launch_steps(run)]
        per_hour = [price.per_hour for price in prices if price.per_hour is not None]
        findings = self.findings(tenant, run) if run.kind is not RunKind.FAILBACK else []
        return document | {
            "state": "planned",
            "price": {
                "cpus": sum(price.cpus for price in prices),
                "memory_mib": sum(price.memory_mib for price in prices),
                "per_hour": sum(per_hour) if per_hour else None,
                "currency": prices[0].currency if prices else None,
            },
            "findings": [
                {"level": finding.level.value, "text": finding.text, "hint": finding.hint} for finding in findings
            ],
        }

    def _plan_of(self, tenant: str, target: str, servers: Any) -> Plan:
        text = self._plans.find(tenant, target)
        if text is not None:
            return parse_plan(text, f"plan {target}")
        if target in servers:
            return default_plan(target)
        names = [*self._plans.names(tenant), *servers]
        known = ", ".join(sorted(set(names))[:10]) or "none yet"
        raise NotFound(f"there is no plan or server {target!r}", f"there are: {known}")

    def _name_to_bring_home(self, failover: Run, server_name: str | None) -> str:
        booted = booted_servers(failover)
        home = home_servers(failover, self._runs.runs(failover.tenant))
        away = {name for server_id, name in booted.items() if server_id not in home}
        if server_name is not None and server_name not in booted.values():
            raise NotFound(f"{failover.id} did not boot {server_name}", f"it booted: {', '.join(booted.values())}")
        if server_name in away:
            return server_name
        if server_name is not None or not away:
            raise Conflict(f"{server_name or 'every server'} of {failover.id} is at home already")
        if len(away) > 1:
            raise UsageError(f"{failover.id} has {len(away)} servers away: {', '.join(sorted(away))}", "--server NAME")
        return away.pop()

    def _facts(self) -> SiteFacts:
        return SiteFacts(name=self._site.name, free_bytes=self._site.free_bytes())
