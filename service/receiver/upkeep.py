"""Upkeep: what the receiver does by itself, again and again: close what is idle, remove what is superfluous."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from concurrent.futures import Executor
from typing import Protocol

from agent.protocol.errors import UnderstudyError
from service.receiver.pull import PointReader
from service.receiver.receiver import PointRows, Receiver
from service.receiver.retention import retain

INTERVAL_SECONDS = 5.0

log = logging.getLogger(__name__)


class CountedRows(PointRows, Protocol):
    def servers_with_more_than(self, count: int) -> Iterable[str]:
        """The ids of servers that have more than `count` points."""
        ...


async def keep_up(receiver: Receiver, reader: PointReader, rows: CountedRows, keep: int, threads: Executor) -> None:
    """Runs until it is cancelled; a failure is logged, and tried again at the next turn."""
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(INTERVAL_SECONDS)
        try:
            await loop.run_in_executor(threads, _once, receiver, reader, rows, keep)
        except UnderstudyError as error:
            log.warning("upkeep: %s", error)
        except Exception:
            log.exception("upkeep failed")


def _once(receiver: Receiver, reader: PointReader, rows: CountedRows, keep: int) -> None:
    receiver.close_idle()
    reader.close_idle()
    for server_id in rows.servers_with_more_than(keep):
        try:
            retain(receiver, rows, server_id, keep)
        except UnderstudyError as error:  # one server's damage is no reason to let the others' points pile up
            log.warning("points of %s are not removed: %s", server_id, error)
