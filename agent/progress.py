"""A progress bar for people on a terminal; nothing where there is none."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

_INTERVAL_SECONDS = 0.2
_APPEARS_AFTER_SECONDS = 1.0
_WIDTH = 30


class ProgressBar:
    """Call it with (done, total) in bytes. It appears after a second, and is gone when the work is."""

    def __init__(self, what: str, *, enabled: bool) -> None:
        self._what = what
        self._enabled = enabled and sys.stderr.isatty()
        self._began = time.monotonic()
        self._drawn_at = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._drawn_at:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if not self._enabled or now - self._began < _APPEARS_AFTER_SECONDS:
            return
        if now - self._drawn_at < _INTERVAL_SECONDS:
            return
        self._drawn_at = now
        share = done / total if total else 1.0
        bar = "#" * int(share * _WIDTH)
        rate = done / (now - self._began) / (1 << 20)
        sys.stderr.write(f"\r{self._what} [{bar:<{_WIDTH}}] {share:4.0%} {rate:6.0f} MiB/s\033[K")
        sys.stderr.flush()
