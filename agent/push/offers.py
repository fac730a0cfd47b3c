"""Offers: while some are under way, what else is to be offered gathers, and goes in one request when one is answered.

A request costs some milliseconds of processor time, at both ends together, however little it brings, and pieces of a
disk of which something changed come in dozens: a day of changes took 50 offers instead of 125, and a sixth less time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

from agent.client import ServiceClient
from agent.protocol.errors import BadMessage
from agent.protocol.frames import Answer, encode_offer
from agent.protocol.grid import BlockGrid
from agent.protocol.pages import SUM_BYTES, page_count
from agent.push.changes import Change


@dataclass(frozen=True, slots=True)
class Said:
    """What the receiver says of a block. `sums`: of the pages of what is in its place, if that may be like it."""

    answer: int
    sums: bytes = b""


@dataclass(slots=True)
class _Asker:
    changes: Sequence[Change]
    answered: asyncio.Future[list[Said]] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Offers:
    """For one volume of a session, and one event loop; `at_once` requests are under way at most."""

    def __init__(self, path: str, grid: BlockGrid, client: ServiceClient, at_once: int) -> None:
        self._path = path
        self._grid = grid
        self._client = client
        self._waiting: list[_Asker] = []
        self._at_once = at_once
        self._under_way: set[asyncio.Task[None]] = set()

    async def ask(self, changes: Sequence[Change]) -> list[Said]:
        """For each of these blocks, which others must not offer meanwhile. Raises what ServiceClient.call raises, and
        BadMessage."""
        asker = _Asker(changes)
        self._waiting.append(asker)
        if len(self._under_way) < self._at_once:
            self._under_way.add(asyncio.create_task(self._ask_all()))
        return await asker.answered

    async def ask_apart(self, changes: Sequence[Change], *, with_sums: bool) -> list[Said]:
        """The same at once, beside all others."""
        offer = encode_offer([change.index for change in changes], b"".join(change.digest for change in changes))
        answer = await self._client.call("POST", f"{self._path}/offer{'?sums=1' if with_sums else ''}", [offer])
        return self._read(changes, answer)

    async def _ask_all(self) -> None:
        try:
            while self._waiting:
                askers, self._waiting = self._waiting, []
                await self._ask(askers)
        finally:
            # in the same breath: who came between the last look and this would count on being seen, and wait for ever
            self._under_way.discard(cast("asyncio.Task[None]", asyncio.current_task()))

    async def _ask(self, askers: list[_Asker]) -> None:
        together = sorted((change for asker in askers for change in asker.changes), key=lambda change: change.index)
        try:
            said = await self.ask_apart(together, with_sums=True)
        except Exception as error:  # theirs to handle
            for asker in askers:
                if not asker.answered.done():
                    asker.answered.set_exception(error)
            return
        of_block = {change.index: one for change, one in zip(together, said, strict=True)}
        for asker in askers:
            if not asker.answered.done():  # else its worker was cancelled
                asker.answered.set_result([of_block[change.index] for change in asker.changes])

    def _read(self, changes: Sequence[Change], answer: bytes) -> list[Said]:
        if len(answer) < len(changes):
            raise BadMessage(f"the receiver answered {len(answer)} of {len(changes)} blocks that were offered")
        said = []
        at = len(changes)
        for change, one in zip(changes, answer, strict=False):
            if change.source is None and one in (Answer.LACKING, Answer.DIFFERS):
                raise BadMessage("the receiver asks for the content of a block of zeros")
            count = page_count(self._grid.length(change.index)) if one == Answer.DIFFERS else 0
            said.append(Said(one, answer[at : at + count * SUM_BYTES]))
            at += count * SUM_BYTES
        if at != len(answer):
            raise BadMessage(f"the receiver named {len(answer) - len(changes)} bytes of sums, not {at - len(changes)}")
        return said
