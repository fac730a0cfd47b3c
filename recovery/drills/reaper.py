"""Ends drills whose time is over, and removes instances that ended or crashed drills left behind."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Protocol

from agent.protocol.errors import NotFound, UnderstudyError
from recovery.runs import Run, RunKind, RunState
from recovery.sites.contract import Instance, Site

DEFAULT_TTL_SECONDS = 7200.0

log = logging.getLogger(__name__)


class DrillRuns(Protocol):
    """The store, as far as the reaper needs it."""

    def get(self, run_id: str) -> Run:
        """Raises NotFound."""
        ...

    def live_drills(self) -> list[Run]:
        """Of every tenant, but for those that have ended; oldest first."""
        ...


class Reaper:
    """`end` begins to end a run (Executor.end); `tell` writes into a tenant's audit trail."""

    def __init__(
        self,
        runs: DrillRuns,
        site: Site,
        end: Callable[[str], None],
        tell: Callable[[str, str], None],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._runs = runs
        self._site = site
        self._end = end
        self._tell = tell
        self._now = now

    def sweep(self) -> None:
        """Once. Each thing is tried whatever became of the one before; raises what the store and the site raise."""
        for run in self._runs.live_drills():
            why = why_over(run, self._now())
            if why is None or run.state is RunState.ENDING:
                continue
            try:
                self._tell(run.tenant, f"{run.id} of {run.plan} is ended: {why}")
                self._end(run.id)
            except UnderstudyError as error:
                log.warning("%s cannot be ended yet, though %s: %s", run.id, why, error)
        # Listed before the runs are looked up: a run is stored before its first instance is made.
        for instance in self._site.instances():
            if not self._is_left_behind(instance):
                continue
            what = f"{instance.instance_id}, left behind by {instance.run_id},"
            try:
                self._site.end(instance.instance_id)
                log.warning("%s was removed", what)
            except UnderstudyError as error:
                log.warning("%s cannot be removed yet: %s", what, error)

    def _is_left_behind(self, instance: Instance) -> bool:
        """Only what a drill made is ever removed unasked. A run that the database lost tells its kind by its id."""
        try:
            run = self._runs.get(instance.run_id)
        except NotFound:
            return instance.run_id.startswith(f"{RunKind.DRILL}-")
        return run.kind is RunKind.DRILL and run.state is RunState.ENDED


def why_over(run: Run, now: float) -> str | None:
    """Why this drill is to be ended by itself; None while it may stay."""
    if run.scheduled and run.state in (RunState.SUCCEEDED, RunState.FAILED):
        return "it was scheduled, and its verdict is there"
    if run.expires_at is not None and now >= run.expires_at:
        return "its time to live is over"
    return None
