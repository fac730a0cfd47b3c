"""When agents were last heard: noted in memory, and written down all together every few seconds.

Thousands of agents say hello all the time, and a transaction for each would keep the disk busy with nothing else. What
a crash loses is told again by the next hello.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Mapping
from typing import Protocol

from agent.protocol.errors import UnderstudyError
from service.store.rows import ServerRow

FLUSH_SECONDS = 5.0

log = logging.getLogger(__name__)


class SeenRows(Protocol):
    def seen(self, at: Mapping[tuple[str, str], float]) -> None:
        """By server and machine; of one that is not the owner any more, nothing is written."""
        ...


class Sightings:
    """For many threads."""

    def __init__(self, rows: SeenRows) -> None:
        self._rows = rows
        self._lock = threading.Lock()
        self._noted: dict[tuple[str, str], float] = {}

    def note(self, server: ServerRow, at: float) -> None:
        """The owner of this server was heard."""
        if server.owner_machine is not None:
            with self._lock:
                self._noted[server.id, server.owner_machine] = at

    def flush(self) -> None:
        """Write down what was noted since the last time. What cannot be written (a full disk) is soon told again."""
        with self._lock:
            noted, self._noted = self._noted, {}
        if noted:
            try:
                self._rows.seen(noted)
            except UnderstudyError as error:
                log.warning("when %d agents were last heard is not written down: %s", len(noted), error)

    async def keep_up(self) -> None:
        """Runs until it is cancelled."""
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            await asyncio.to_thread(self.flush)
