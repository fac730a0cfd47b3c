"""What the demonstration prints: numbered steps, and a line for each thing done, with the seconds it took."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Task:
    """Something under way. `result`, when set, is added to its line; `note` is shown only while it lasts."""

    text: str
    result: str = ""
    note: str = ""
    started_at: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started_at


class Show:
    """One at a time. On a terminal a running task's line counts the seconds; elsewhere only finished lines appear."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self.started_at = time.monotonic()
        self.step_title = "set-up"

    def step(self, number: int, title: str) -> None:
        self.step_title = f"step {number}: {title}"
        print(f"\n[{time.monotonic() - self.started_at:4.0f} s] {number}. {title}", flush=True)

    def line(self, text: str) -> None:
        print(f"               {text}", flush=True)

    @contextmanager
    def task(self, text: str) -> Iterator[Task]:
        task = Task(text)
        done = threading.Event()
        ticker = threading.Thread(target=self._tick, args=(task, done), daemon=True)
        if self._terminal:
            ticker.start()
        mark = "FAILED"
        try:
            yield task
            mark = "ok"
        finally:
            done.set()
            if self._terminal:
                ticker.join()
            result = f": {task.result}" if task.result else ""
            print(f"  {mark:<6} {task.seconds:5.1f} s {task.text}{result}", flush=True)

    @staticmethod
    def _tick(task: Task, done: threading.Event) -> None:
        while not done.wait(0.25):
            if task.seconds > 1:
                note = f" ({task.note})" if task.note else ""
                sys.stdout.write(f"\r  ...    {task.seconds:5.1f} s {task.text}{note}"[:118] + "\x1b[K")
                sys.stdout.flush()
        sys.stdout.write("\r\x1b[K")
