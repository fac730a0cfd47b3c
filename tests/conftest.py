"""For all tests: what is on this machine must not decide what a plan does, nor be found out each time."""

from __future__ import annotations

import os
from pathlib import Path

from recovery.sites.local import accel

_CACHE = Path(__file__).resolve().parents[1] / ".cache"

# boot repair is tried where it is asked for; a service under test has none, whatever kernel lies in /boot here
os.environ.setdefault("UNDERSTUDY_WORKER", "/nonexistent")


def pytest_sessionstart() -> None:
    """Whether KVM works takes eight seconds of a processor to find out where it does not: not in every service."""
    if accel.ENVIRONMENT not in os.environ:
        _CACHE.mkdir(exist_ok=True)
        os.environ[accel.ENVIRONMENT] = accel.choose(_CACHE, None)
