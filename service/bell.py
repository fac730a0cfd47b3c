"""A bell: lets a request wait for news (long polling) without asking the database over and over."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


class Bell:
    """Made inside a running event loop; `ring` may be called from any thread.

    Who waits says what about: thousands of agents wait for commands, and only the one that is meant has to look."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self._closed = False

    def ring(self, about: str = "") -> None:
        """Something changed that operators wait for, or (with a server's id) that its agent does: they look again."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake, about)

    def ring_for(self, server_id: str) -> None:
        """Something changed that the server's agent waits for, and operators too."""
        self.ring(server_id)
        self.ring()

    def close(self) -> None:
        """The service ends: nobody waits any more."""
        self._closed = True
        for about in self._waiting:
            self._wake(about)

    async def news(self, look: Callable[[], Awaitable[T | None]], wait_seconds: float, about: str = "") -> T | None:
        """What `look` finds, waiting for it; None when the time is over."""
        deadline = self._loop.time() + wait_seconds
        while True:
            rung = asyncio.Event()
            self._waiting.setdefault(about, set()).add(rung)  # before looking, so that no ring in between is missed
            try:
                found = await look()
                if found is not None or self._closed or self._loop.time() >= deadline:
                    return found
                async with asyncio.timeout_at(deadline):
                    await rung.wait()
            except TimeoutError:
                return None
            finally:
                self._forget(about, rung)

    def _forget(self, about: str, rung: asyncio.Event) -> None:
        waiting = self._waiting[about]
        waiting.discard(rung)
        if not waiting:
            del self._waiting[about]

    def _wake(self, about: str) -> None:
        for rung in self._waiting.get(about, ()):
            rung.set()
