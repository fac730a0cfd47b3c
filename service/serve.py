"""`understudy serve`: opens what runs need and goes on with them, then puts the rest together: service/answering.py."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path

import uvloop

from agent.protocol.buffers import keep_large_buffers
from agent.protocol.errors import UsageError
from service.core import Core
from service.data_folder import owned
from service.leftovers import KEEP_EVIDENCE_DAYS

SWITCH_SECONDS = 0.001
"""How long a thread may keep the GIL from the one that answers everybody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    data: Path
    host: str = "127.0.0.1"
    port: int = 8470
    site: str = "local"
    database: str | None = None
    interval_seconds: int = 300
    keep: int
    keep_evidence_days: int = KEEP_EVIDENCE_DAYS


def serve(options: ServeOptions) -> None:
    """Run until SIGTERM or SIGINT. Raises UsageError, Conflict, StorageError, SiteError."""
    if options.site != "local":
        raise UsageError(f"site {options.site} is not built yet", "use --site local")
    keep_large_buffers()
    sys.setswitchinterval(SWITCH_SECONDS)
    with owned(options.data):
        uvloop.run(_serve(options))


async def _serve(options: ServeOptions) -> None:
    async with contextlib.AsyncExitStack() as resources:
        core = Core.open(options.data, options.host, options.database, options.keep_evidence_days, resources)
        core.agree_of_runs()  # runs that go on must find the owners that there are
        # Before all else, and before all points' manifests are read: people wait for these runs.
        core.executor.resume()
        from service.answering import answer  # a third of a second of imports

        await answer(core, options, resources)
