"""A bell: lets a request wait for news (long polling) without asking the database over and over."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Bell:
    """Made inside a running event loop; `ring` may be called from any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: set[asyncio.Event] = set()
        self._closed = False

    def ring(self) -> None:
        """Something changed: all who wait look again."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake)

    def close(self) -> None:
        """The service ends: nobody waits any more."""
        self._closed = True
        self._wake()

    async def news(self, look: Callable[[], T | None], wait_seconds: float) -> T | None:
        """What `look` finds (it blocks, and runs in a thread), waiting for it; None when the time is over."""
        deadline = self._loop.time() + wait_seconds
        while True:
            rung = asyncio.Event()
            self._waiting.add(rung)  # before looking, so that no ring in between is missed
            try:
                found = await asyncio.to_thread(look)
                remaining_seconds = deadline - self._loop.time()
                if found is not None or self._closed or remaining_seconds <= 0:
                    return found
                await asyncio.wait_for(rung.wait(), remaining_seconds)
            except TimeoutError:
                return None
            finally:
                self._waiting.discard(rung)

    def _wake(self) -> None:
        for rung in self._waiting:
            rung.set()
