"""How servers stand when their agents say hello: looked up for all that come within a moment, in one query.

Thousands of agents say hello all the time, and nearly all of them have nothing to tell and nothing to do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping

from agent.protocol.errors import NotFound
from service.store.rows import ServerRow

GATHERING_SECONDS = 0.1

Greeted = tuple[ServerRow, bool]
"""The server, without volumes and inventory, and whether commands wait for its agent."""


class Greetings:
    """For one event loop. `look` says how these servers stand now, those that there are; it blocks."""

    def __init__(
        self,
        look: Callable[[Collection[str]], Mapping[str, Greeted]],
        gathering_seconds: float = GATHERING_SECONDS,
    ) -> None:
        self._look = look
        self._gathering_seconds = gathering_seconds
        self._asked: dict[str, asyncio.Future[Greeted | None]] = {}
        self._answering: set[asyncio.Task[None]] = set()

    async def of(self, server_id: str) -> Greeted:
        """How it stands, at some moment after the call. Raises NotFound, and what `look` raises."""
        if not self._asked:
            task = asyncio.create_task(self._answer())
            self._answering.add(task)  # a task that nobody holds may be collected
            task.add_done_callback(self._answering.discard)
        answer = self._asked.setdefault(server_id, asyncio.get_running_loop().create_future())
        found = await asyncio.shield(answer)  # somebody else may wait for the same one
        if found is None:
            raise NotFound(f"there is no server {server_id}")
        return found

    async def _answer(self) -> None:
        await asyncio.sleep(self._gathering_seconds)
        asked, self._asked = self._asked, {}
        try:
            found = await asyncio.to_thread(self._look, asked.keys())
        except Exception as error:  # everybody who asked gets it
            for answer in asked.values():
                answer.set_exception(error)
                answer.exception()  # those who asked may have gone meanwhile
            return
        for server_id, answer in asked.items():
            answer.set_result(found.get(server_id))
