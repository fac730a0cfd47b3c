"""Requests take turns, however many are allowed, and whoever gives up."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from agent.turns import Turns


class Requests:
    """What is inside, in the order in which it came in; each ends when it is let go."""

    def __init__(self, most: int) -> None:
        self.turns = Turns(most)
        self.inside: list[int] = []
        self._go: dict[int, asyncio.Event] = {}

    def begin(self, number: int) -> asyncio.Task[None]:
        self._go[number] = asyncio.Event()
        return asyncio.create_task(self._request(number))

    def end(self, number: int) -> None:
        self._go[number].set()

    async def _request(self, number: int) -> None:
        async with self.turns.turn():
            self.inside.append(number)
            try:
                await self._go[number].wait()
            finally:
                self.inside.remove(number)


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


def test_so_many_are_inside_as_are_allowed_and_the_next_comes_when_one_leaves() -> None:
    async def test() -> None:
        requests = Requests(2)
        tasks = [requests.begin(number) for number in range(4)]
        await settled()
        assert requests.inside == [0, 1]
        requests.end(0)
        await settled()
        assert requests.inside == [1, 2]
        for number in range(1, 4):
            requests.end(number)
        await asyncio.gather(*tasks)

    run(test())


def test_what_is_allowed_changes_and_is_never_nothing() -> None:
    async def test() -> None:
        requests = Requests(3)
        tasks = [requests.begin(number) for number in range(6)]
        await settled()
        requests.turns.allow(0)
        requests.end(0)
        requests.end(1)
        await settled()
        assert requests.inside == [2]
        requests.end(2)
        await settled()
        assert requests.inside == [3]
        requests.turns.allow(8)
        await settled()
        assert requests.inside == [3, 4, 5]
        for number in (3, 4, 5):
            requests.end(number)
        await asyncio.gather(*tasks)

    run(test())


def test_a_limit_that_is_taken_away_lets_all_in() -> None:
    async def test() -> None:
        requests = Requests(1)
        tasks = [requests.begin(number) for number in range(4)]
        await settled()
        assert requests.inside == [0]
        requests.turns.allow(None)
        await settled()
        assert requests.inside == [0, 1, 2, 3]
        assert not requests.turns.are_too_many
        for number in range(4):
            requests.end(number)
        await asyncio.gather(*tasks)

    run(test())


def test_one_that_gives_up_leaves_its_turn_to_others_whenever_it_does() -> None:
    async def test() -> None:
        requests = Requests(1)
        first, second, third, fourth = (requests.begin(number) for number in range(4))
        await settled()
        second.cancel()  # while it waits
        requests.end(0)
        await asyncio.sleep(0)  # the third is called, and not yet inside
        third.cancel()
        await settled()
        assert second.cancelled() and third.cancelled()
        assert requests.inside == [3]
        fourth.cancel()  # while it is inside
        await settled()
        last = requests.begin(5)
        requests.end(5)
        await asyncio.wait_for(asyncio.gather(first, last), 30)

    run(test())
