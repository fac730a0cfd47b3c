"""Where runs are kept in tests of what recovery decides."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from agent.protocol.errors import Conflict, NotFound
from recovery.runs import Run, RunKind, RunState, Step, StepState


class MemoryStore:
    """Keeps runs as JSON, as a database would; `before_save` and `after_save` are where a service may be killed."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Any]] = {}
        self.before_save: Callable[[], None] = lambda: None
        self.after_save: Callable[[], None] = lambda: None

    def add(self, run: Run) -> None:
        self.before_save()
        if run.id in self.rows:
            raise Conflict(f"run {run.id} exists")
        self.rows[run.id] = json.loads(json.dumps(asdict(run)))
        self.after_save()

    def get(self, run_id: str) -> Run:
        if run_id not in self.rows:
            raise NotFound(f"no run {run_id}")
        row = copy.deepcopy(self.rows[run_id])
        steps = [Step(**{**step, "state": StepState(step["state"])}) for step in row.pop("steps")]
        return Run(**{**row, "kind": RunKind(row["kind"]), "state": RunState(row["state"]), "steps": steps})

    def runs(self, tenant: str | None = None) -> list[Run]:
        return [self.get(run_id) for run_id in reversed(self.rows) if tenant in (None, self.rows[run_id]["tenant"])]

    def live(self, tenant: str) -> list[Run]:
        runs = self.runs(tenant)
        live = {run.id for run in runs if run.state is not RunState.ENDED}
        return [run for run in runs if run.id in live or run.failover_run in live]

    def failbacks(self, failover_id: str) -> list[Run]:
        return [run for run in self.runs() if run.failover_run == failover_id]

    def unfinished(self) -> list[Run]:
        return [run for run in reversed(self.runs()) if run.state in (RunState.RUNNING, RunState.ENDING)]

    def live_drills(self) -> list[Run]:
        return [run for run in self.runs()[::-1] if run.kind is RunKind.DRILL and run.state is not RunState.ENDED]

    def save_step(self, run_id: str, position: int, step: Step) -> None:
        self.save_steps(run_id, {position: step})

    def save_steps(self, run_id: str, steps: Mapping[int, Step]) -> None:
        self.before_save()
        row = self.rows[run_id]
        for position, step in steps.items():
            row["steps"][position] = json.loads(json.dumps(asdict(step)))
        row["version"] += 1
        self.after_save()

    def save_committed(self, run_id: str, at: float) -> None:
        self.before_save()
        self.rows[run_id] |= {"committed_at": at}
        self.after_save()

    def save_state(self, run_id: str, state: RunState, ended_at: float | None) -> None:
        self.before_save()
        self.rows[run_id] |= {"state": state.value, "ended_at": ended_at}
        self.after_save()
