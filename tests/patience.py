"""How long tests wait for what has to come: however slow the machine, however much else it does."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE_SECONDS = 240.0
"""No step of any test takes nearly as long; what takes longer hangs."""


def eventually(look: Callable[[], T | None]) -> T:
    """What `look` finds, as soon as it is something."""
    limit = time.monotonic() + PATIENCE_SECONDS
    while not (found := look()):
        assert time.monotonic() < limit, "it did not come about"
        time.sleep(0.05)
    return found
