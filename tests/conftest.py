"""For all tests: what is on this machine must not decide what a plan does, nor be found out each time."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from recovery.sites.local import accel

_CACHE = Path(__file__).resolve().parents[1] / ".cache"

# boot repair is tried where it is asked for; a service under test has none, whatever kernel lies in /boot here
os.environ.setdefault("UNDERSTUDY_WORKER", "/nonexistent")

# the same examples in every run, however long one takes: what a run finds by chance fails somebody else's change
settings.register_profile("same", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("search", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("UNDERSTUDY_EXAMPLES", "same"))


def pytest_sessionstart() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # mounts and processes go with a run that is ended
    # whether KVM works takes eight seconds of a processor to find out where it does not: not in every service
    if accel.ENVIRONMENT not in os.environ:
        _CACHE.mkdir(exist_ok=True)
        os.environ[accel.ENVIRONMENT] = accel.choose(_CACHE, None)


@pytest.fixture(scope="session", autouse=True)
def temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What processes that are killed leave in theirs goes with all else that old runs left."""
    before, os.environ["TMPDIR"] = os.environ.get("TMPDIR"), str(tmp_path_factory.mktemp("tmp"))
    tempfile.tempdir = None  # it is looked up again
    yield
    del os.environ["TMPDIR"]
    if before is not None:
        os.environ["TMPDIR"] = before
    tempfile.tempdir = None
