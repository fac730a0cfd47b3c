"""Turns: how many may be under way at once, where that changes as the service has more or fewer agents to serve."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator


class Turns:
    """For one event loop. First come, first served. `most`: None is no limit."""

    def __init__(self, most: int | None) -> None:
        self._most = most
        self._under_way = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    def allow(self, most: int | None) -> None:
        """From now on so many, and at least one; what is under way goes on."""
        self._most = None if most is None else max(1, most)
        self._call()

    @property
    def are_too_many(self) -> bool:
        """More are under way than are allowed by now."""
        return self._most is not None and self._under_way > self._most

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Inside is one of those that may be under way."""
        if self._waiting or not self._has_room():
            called = asyncio.get_running_loop().create_future()
            self._waiting.append(called)
            try:
                await called
            except asyncio.CancelledError:
                if called.done() and not called.cancelled():
                    self._leave()
                raise
        else:
            self._under_way += 1
        try:
            yield
        finally:
            self._leave()

    def _leave(self) -> None:
        self._under_way -= 1
        self._call()

    def _call(self) -> None:
        while self._waiting and self._has_room():
            called = self._waiting.popleft()
            if not called.done():
                self._under_way += 1
                called.set_result(None)

    def _has_room(self) -> bool:
        return self._most is None or self._under_way < self._most
