"""Runs and steps as plain data, and the store that keeps them. Imports nothing but the standard library."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any, Protocol


class RunKind(enum.StrEnum):
    DRILL = "drill"
    FAILOVER = "failover"
    FAILBACK = "failback"


class RunState(enum.StrEnum):
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    """Every step is done, every gate held. What it launched still runs, until the run is ended."""
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
    """One step of a run. `action` names what the executor does, `args` what it needs: both JSON, both final.

    `result` is what later steps read (an instance's id, a point's id). `waits_for` says, while it runs, what an
    operator has to do or is waiting for. Times are seconds since 1970 by the service's clock.
    """

    name: str
    action: str
    args: dict[str, Any] = field(default_factory=dict)
    state: StepState = StepState.PENDING
    started_at: float | None = None
    ended_at: float | None = None
    error: str | None = None
    waits_for: str | None = None
    result: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Run:
    """One execution of a plan. `plan` is the plan's or the server's name as the operator gave it.

    `failover_run` is, for a failback, the run that it brings home. `version` rises with every change that is stored.
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
    version: int = 0


class RunStore(Protocol):
    """Where runs survive a crash. Each call is one transaction. Raises NotFound, Conflict."""

    def add(self, run: Run) -> None: ...

    def get(self, run_id: str) -> Run: ...

    def runs(self, tenant: str | None = None) -> list[Run]:
        """Newest first."""
        ...

    def unfinished(self) -> list[Run]:
        """Those in state RUNNING or ENDING, oldest first: what to go on with after a crash."""
        ...

    def save_step(self, run_id: str, position: int, step: Step) -> None:
        """Store one step's state, times, error, waits_for and result."""
        ...

    def save_state(self, run_id: str, state: RunState, ended_at: float | None) -> None: ...
