from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from agent.protocol.errors import UnderstudyError
from recovery.repair import worker, worker_image
from recovery.repair.fetch import fetch
from tests.recovery.repair.images import CACHE


@pytest.fixture
def worker_parts() -> Iterator[None]:
    """What workers are made of: this machine's own kernel, else Debian's, downloaded once."""
    before = os.environ.get(worker_image.ENVIRONMENT)
    if worker.unavailable() is not None:
        try:
            fetch(CACHE / "worker")
        except UnderstudyError as error:
            pytest.skip(f"no worker for boot repair can be made here: {error}")
        os.environ[worker_image.ENVIRONMENT] = str(CACHE / "worker")
    if reason := worker.unavailable():
        pytest.skip(f"no worker for boot repair can be made here: {reason}")
    yield
    if before is None:
        os.environ.pop(worker_image.ENVIRONMENT, None)
    else:
        os.environ[worker_image.ENVIRONMENT] = before
