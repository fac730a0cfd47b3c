"""The time as runs see it; tests bring a clock of their own."""

from __future__ import annotations

import threading
import time
from typing import Protocol


class Clock(Protocol):
    def now(self) -> float:
        """Seconds since 1970, for what is stored and shown. It may jump."""
        ...

    def monotonic(self) -> float:
        """Seconds, for time limits. It never goes back, and means nothing after a restart."""
        ...

    def wait(self, interrupt: threading.Event, seconds: float) -> None:
        """Return after `seconds`, or at once when `interrupt` is set."""
        ...


class SystemClock:
    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    def wait(self, interrupt: threading.Event, seconds: float) -> None:
        interrupt.wait(seconds)
