from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import cast

import pytest

from recovery.runs import Run, RunKind, RunStore, Step
from recovery.saving import StepSaver


class SlowStore:
    """Each transaction waits until the test lets it go."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.begun = threading.Semaphore(0)
        self.go = threading.Semaphore(0)
        self.failure: OSError | None = None

    def save_steps(self, run_id: str, changed: Mapping[int, Step]) -> None:
        self.batches.append(sorted(changed))
        self.begun.release()
        self.go.acquire()
        if self.failure:
            raise self.failure


def saver_of(store: SlowStore) -> StepSaver:
    steps = [Step(name=str(number), action="x") for number in range(10)]
    run = Run(id="r", tenant="t", kind=RunKind.DRILL, plan="p", steps=steps)
    return StepSaver(cast("RunStore", store), run, threading.Lock())


def test_what_comes_while_a_transaction_is_written_shares_the_next() -> None:
    store = SlowStore()
    saver = saver_of(store)
    threads = [threading.Thread(target=saver.save, args=(position,)) for position in range(10)]
    threads[0].start()
    store.begun.acquire()
    for thread in threads[1:]:
        thread.start()
    while len(saver._waiting) < 9:
        threading.Event().wait(0.001)
    store.go.release()
    store.go.release()
    for thread in threads:
        thread.join()
    assert store.batches == [[0], list(range(1, 10))]


def test_each_learns_that_the_transaction_it_shared_has_failed() -> None:
    store = SlowStore()
    store.failure = OSError("database is locked")
    store.go.release()
    saver = saver_of(store)
    with pytest.raises(OSError, match="database is locked"):
        saver.save(0)
    store.failure = None
    store.go.release()
    saver.save(0)
    assert store.batches == [[0], [0]]
