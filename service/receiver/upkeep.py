"""Upkeep: what the receiver does by itself, again and again: close what is idle, remove what is superfluous."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Executor

from agent.protocol.errors import UnderstudyError
from service.receiver.pull import PointReader
from service.receiver.receiver import Receiver
from service.receiver.retention import Retention

INTERVAL_SECONDS = 5.0

log = logging.getLogger(__name__)


async def keep_up(receiver: Receiver, reader: PointReader, retention: Retention, threads: Executor) -> None:
    """Runs until it is cancelled; a failure is logged, and tried again at the next turn."""
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(INTERVAL_SECONDS)
        try:
            await loop.run_in_executor(threads, _once, receiver, reader, retention)
        except UnderstudyError as error:
            log.warning("upkeep: %s", error)
        except Exception:
            log.exception("upkeep failed")


def _once(receiver: Receiver, reader: PointReader, retention: Retention) -> None:
    receiver.close_idle()
    receiver.dedupe.tend()
    reader.close_idle()
    retention.retain_all()
