"""Runs and steps as plain data, and the store that keeps them. Imports nothing but the standard library."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


class RunKind(enum.StrEnum):
    DRILL = "drill"
    FAILOVER = "failover"
    FAILBACK = "failback"
    CLONE = "clone"
    """Copies for test and development: isolated like a drill, and nobody's understudy."""
    MIGRATE = "migrate"
    """A failover that is meant to stay: without a way back."""

    @property
    def takes_over(self) -> bool:
        """Do its instances play the servers from then on?"""
        return self in (RunKind.FAILOVER, RunKind.MIGRATE)


class RunState(enum.StrEnum):
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    """Every gate held, and all else is done (but for what is only worth a warning: recovery.verdict). What it launched
    still runs, until the run is ended."""
    FAILED = "failed"
    """A step failed. What it launched is kept for a look, until the run is ended."""
    ENDING = "ending"
    ENDED = "ended"
    """All it made has been removed."""


class StepState(enum.StrEnum):
    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


@dataclass(slots=True, kw_only=True)
class Step:
    """One step of a run. `action` names what the executor does, `args` what it needs: both JSON, both final. `optional`
    may become true when an operator lets what failed pass.

    `after` are the positions of the steps that have to be over before this one begins. A step that fails is tried
    `retries` times more; then what comes after it does not begin, unless it is `optional`. A `closing` step looks at
    what became of the run: it begins once all others are over, or cannot begin any more.
    `result` is what later steps read (an instance's id, a point's id). `waits_for` says, while it runs, what an
    operator has to do or is waiting for. Times are seconds since 1970 by the service's clock.
    """

    name: str
    action: str
    args: dict[str, Any] = field(default_factory=dict)
    after: list[int] = field(default_factory=list)
    retries: int = 0
    optional: bool = False
    closing: bool = False
    state: StepState = StepState.PENDING
    started_at: float | None = None
    ended_at: float | None = None
    error: str | None = None
    waits_for: str | None = None
    result: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Run:
    """One execution of a plan. `plan` is the plan's or the server's name as the operator gave it.

    `failover_run` is, for a failback, the run that it brings home. `price` is what it was to use and cost, as it was
    shown before (recovery.prices); `over_cap` why somebody let it exceed a cap. `committed_at`: from then on a failover
    cannot be rolled back, and a failback that was told to hold may cut over. A drill is ended by itself at
    `expires_at`; a `scheduled` one as soon as its verdict is there. `version` rises with every change.
    """

    id: str
    tenant: str
    kind: RunKind
    plan: str
    steps: list[Step]
    state: RunState = RunState.RUNNING
    created_at: float = 0.0
    ended_at: float | None = None
    failover_run: str | None = None
    price: dict[str, Any] = field(default_factory=dict)
    over_cap: str | None = None
    committed_at: float | None = None
    expires_at: float | None = None
    scheduled: bool = False
    version: int = 0

    def launches(self) -> list[Step]:
        return [step for step in self.steps if step.action == "launch"]


def chained(steps: list[Step]) -> list[Step]:
    """The steps, each after the one before it."""
    for position, step in enumerate(steps[1:], 1):
        step.after = [position - 1]
    return steps


class RunStore(Protocol):
    """Where runs survive a crash. Each call is one transaction. Raises NotFound, Conflict."""

    def add(self, run: Run) -> None: ...

    def get(self, run_id: str) -> Run: ...

    def live(self, tenant: str) -> list[Run]:
        """What has not ended, and all failbacks of that, which tell what is at home; newest first."""
        ...

    def failbacks(self, failover_id: str) -> list[Run]:
        """The runs that bring this failover home, or did; newest first."""
        ...

    def unfinished(self) -> list[Run]:
        """Those in state RUNNING or ENDING, oldest first: what to go on with after a crash."""
        ...

    def save_step(self, run_id: str, position: int, step: Step) -> None:
        """Store one step's state, times, error, waits_for and result."""
        ...

    def save_steps(self, run_id: str, changed: Mapping[int, Step]) -> None:
        """The same for several, by position."""
        ...

    def save_committed(self, run_id: str, at: float) -> None: ...

    def save_state(self, run_id: str, state: RunState, ended_at: float | None) -> None: ...
