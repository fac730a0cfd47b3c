"""The desk where runs are asked for: plans them by the plan book, and gives them to the executor."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Any

from agent.protocol.errors import Conflict, NotFound, UsageError
from recovery.checks import booted_servers, home_servers
from recovery.describe import describe
from recovery.ending import not_called_off
from recovery.executor import Executor
from recovery.homeward import plan_failback, refuse_failback
from recovery.planner import SeededIds, new_seed
from recovery.report import run_to_json
from recovery.runs import Run, RunState
from recovery.sites.contract import Site
from service.identity.as_server import server_of
from service.planning import PlanBook, Planned
from service.store.runs import RunRows
from service.store.servers import ServerStore


class RunDesk:
    """All calls block. Runs of another tenant are not found."""

    def __init__(
        self,
        servers: ServerStore,
        book: PlanBook,
        runs: RunRows,
        site: Site,
        executor: Executor,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._servers = servers
        self._book = book
        self._runs = runs
        self._site = site
        self._executor = executor
        self._now = now

    def start(self, planned: Planned, over_cap: str | None = None) -> Run:
        """Begin what was planned. `over_cap`: why it may exceed a cap. Raises Conflict, RecoveryError (a cap)."""
        run = planned.run
        run.over_cap = over_cap
        self._executor.start(run, planned.plan.caps, self._book.caps(run.tenant))
        return self._runs.get(run.id)

    # --- failback ---

    def plan_failback(
        self,
        tenant: str,
        failover_id: str,
        server_name: str | None,
        grace_seconds: float = 0.0,
        *,
        hold: bool = False,
        seed: str | None = None,
    ) -> Run:
        """The way home of one server; `seed` as for PlanBook.plan. Raises NotFound, Conflict, UsageError (several are
        away, none is named)."""
        failover = self.get(tenant, failover_id)
        refuse_failback(failover)
        server = self._servers.by_name(tenant, self._name_to_bring_home(failover, server_name))
        ids, now = SeededIds(seed or new_seed()), self._now()
        return plan_failback(failover, server_of(server, now), ids, now, grace_seconds, hold=hold)

    def fail_back(
        self,
        tenant: str,
        failover_id: str,
        server_name: str | None,
        grace_seconds: float = 0.0,
        *,
        hold: bool = False,
        seed: str | None = None,
    ) -> Run:
        """Begin the way home, or go on with the one that was begun. Raises as plan_failback."""
        failover = self.get(tenant, failover_id)
        begun = [
            run
            for run in self._runs.failbacks(failover.id)
            if run.state in (RunState.RUNNING, RunState.FAILED) and server_name in (None, *booted_servers(run).values())
        ]
        if begun:
            if not_called_off(begun[0]) is not None:
                raise Conflict(
                    f"{begun[0].id} was to be called off, and could not be", f"see: understudy runs {begun[0].id}"
                )
            if begun[0].state is RunState.FAILED:
                self._executor.retry(begun[0].id)
            return self._runs.get(begun[0].id)
        run = self.plan_failback(tenant, failover_id, server_name, grace_seconds, hold=hold, seed=seed)
        self._executor.start(run)
        return self._runs.get(run.id)

    # --- any run ---

    def get(self, tenant: str, run_id: str) -> Run:
        run = self._runs.get(run_id)
        if run.tenant != tenant:
            raise NotFound(f"there is no run {run_id}", "see: understudy runs")
        return run

    def newest(self, tenant: str, most: int) -> list[Run]:
        """So many at the most, newest first."""
        return self._runs.newest(tenant, most)

    def version(self, tenant: str, run_id: str) -> int:
        """Rises with every change of the run, and is found far quicker than all of it."""
        return self._runs.version(run_id, tenant)

    def retry(self, tenant: str, run_id: str, *, go_on: bool = False, dead: Collection[str] = ()) -> Run:
        """As Executor.retry."""
        self._executor.retry(self.get(tenant, run_id).id, go_on=go_on, dead=dead)
        return self._runs.get(run_id)

    def end(self, tenant: str, run_id: str, *, force: bool) -> Run:
        """Begin to remove all that the run made. Raises Conflict, saying what would be lost."""
        self._executor.end(self.get(tenant, run_id).id, force=force)
        return self._runs.get(run_id)

    def commit(self, tenant: str, run_id: str) -> Run:
        """Raises Conflict."""
        self._executor.commit(self.get(tenant, run_id).id)
        return self._runs.get(run_id)

    def roll_back(self, tenant: str, run_id: str) -> Run:
        """Raises Conflict."""
        self._executor.roll_back(self.get(tenant, run_id).id)
        return self._runs.get(run_id)

    def to_json(self, runs: list[Run]) -> list[dict[str, Any]]:
        """The runs in the contract's form, with what each step does in words."""
        instances = {instance.instance_id: instance for instance in self._site.instances()}
        documents = []
        for run in runs:
            document = run_to_json(run, instances, self._now()) | {"version": run.version}
            for step, entry in zip(run.steps, document["steps"], strict=True):
                entry["description"] = describe(step)
            documents.append(document)
        return documents

    def planned_to_json(self, run: Run) -> dict[str, Any]:
        """What a run that has not been started would do."""
        (document,) = self.to_json([run])
        return document | {"state": "planned"}

    def dry_run_to_json(self, planned: Planned) -> dict[str, Any]:
        """What a run that has not been started would do, use and risk."""
        findings = [finding.to_json() for finding in self._book.findings(planned)]
        return self.planned_to_json(planned.run) | {"findings": findings, "seed": planned.seed}

    def _name_to_bring_home(self, failover: Run, server_name: str | None) -> str:
        booted = booted_servers(failover)
        home = home_servers(failover, self._runs.failbacks(failover.id))
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
