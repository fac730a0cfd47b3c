"""Stores the steps of a run that are performed side by side: what comes while a transaction is written shares the next.

A database that is synced to disk takes milliseconds for each transaction, however much is in it.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from recovery.runs import Run, RunStore, Step


@dataclass(slots=True)
class _Entry:
    """`done` once it was stored, or `failure` says why it could not be."""

    position: int
    step: Step
    done: bool = False
    failure: BaseException | None = None


class StepSaver:
    """For one run; call from any thread. `writing` is held while one transaction is written."""

    def __init__(self, store: RunStore, run: Run, writing: threading.Lock) -> None:
        self._store = store
        self._run = run
        self._writing = writing
        self._waiting: list[_Entry] = []
        self._lock = threading.Lock()

    def save(self, position: int) -> None:
        """Returns when the step is stored as it is now. Nobody else may change it meanwhile. Raises as the store."""
        entry = _Entry(position, self._run.steps[position])
        with self._lock:
            self._waiting.append(entry)
        with self._writing:
            if not entry.done and entry.failure is None:  # else whoever wrote before has taken it along
                self._write_all()
        if entry.failure is not None:
            raise entry.failure

    def _write_all(self) -> None:
        with self._lock:
            batch, self._waiting = self._waiting, []
        try:
            self._store.save_steps(self._run.id, {entry.position: entry.step for entry in batch})
        except BaseException as error:
            for entry in batch:
                entry.failure = error
        else:
            for entry in batch:
                entry.done = True
