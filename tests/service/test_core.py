"""What a service that was killed opens before it goes on with its runs: nothing that these have no use for."""

from __future__ import annotations

import subprocess
import sys

import pytest

NOT_WAITED_FOR = (
    "aiohttp",
    "spake2",
    "lmdb",
    "alembic",
    "service.api",
    "service.receiver.receiver",
    "service.cli.client",
)


@pytest.mark.parametrize("first", ["service.serve", "service.core", "service.cli.parser"])
def test_runs_do_not_wait_for_imports_of_what_answers_over_http(first: str) -> None:
    """A third of a second, of the two that they may wait."""
    script = f"import sys, service.cli.parser, {first}; print(*sys.modules)"
    listed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert first in listed
    assert not set(NOT_WAITED_FOR) & set(listed)
