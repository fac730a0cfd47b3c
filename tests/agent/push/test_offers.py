"""Offers that gather while others are under way: every one is answered, whenever it comes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import cast

from agent.client import ServiceClient
from agent.protocol.frames import Answer, Kind, decode_single
from agent.protocol.grid import BlockGrid
from agent.push.changes import Change
from agent.push.offers import Offers

GRID = BlockGrid(64 * 65536, 65536)


class _Service:
    """Answers when it is told to: HAVE for each block."""

    def __init__(self) -> None:
        self.asked: list[tuple[asyncio.Future[None], int]] = []

    async def call(self, method: str, path: str, body: Sequence[bytes]) -> bytes:
        frame = decode_single(body[0], Kind.OFFER)
        go = asyncio.get_running_loop().create_future()
        self.asked.append((go, len(frame.indices)))
        await go
        return bytes([Answer.HAVE]) * len(frame.indices)

    def answer(self) -> None:
        """All that was asked, in one turn of the event loop."""
        for go, _ in self.asked:
            if not go.done():
                go.set_result(None)


def change(index: int) -> Change:
    return Change(index, bytes([index]) * 32, b"x" * 65536)


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_one_that_comes_just_as_the_others_were_answered_is_asked_too() -> None:
    """At each of the first turns of the event loop behind the answers: in one of them, those that are under way have
    come to their end, and are not known to have."""
    for turns in range(8):
        service = _Service()
        offers = Offers("/volume", GRID, cast(ServiceClient, service), at_once=2)
        first = []
        for index in (1, 2):
            first.append(asyncio.create_task(offers.ask([change(index)])))
            await settled()
        assert len(service.asked) == 2
        service.answer()
        for _ in range(turns):
            await asyncio.sleep(0)
        late = asyncio.create_task(offers.ask([change(3)]))
        await settled()
        service.answer()
        await settled()
        assert late.done(), f"the one that came {turns} turns behind is never asked"
        assert [one.answer for one in await late] == [Answer.HAVE]
        await asyncio.gather(*first)


async def test_what_comes_while_as_many_as_may_be_are_under_way_goes_together() -> None:
    service = _Service()
    offers = Offers("/volume", GRID, cast(ServiceClient, service), at_once=1)
    asking = [asyncio.create_task(offers.ask([change(index)])) for index in (5, 4, 6)]
    for _ in asking:
        await settled()
        service.answer()
    await settled()
    assert all(task.done() for task in asking)
    assert [count for _, count in service.asked] in ([3], [1, 2])
