import asyncio
import functools
import threading

from service.bell import Bell
from tests.patience import eventually


async def nothing() -> None:
    """What is found when there is no news."""


async def test_a_ring_from_another_thread_ends_the_wait() -> None:
    bell, found = Bell(), threading.Event()

    async def look() -> str | None:
        return "news" if found.is_set() else None

    waiting = asyncio.create_task(bell.news(look, 60))
    await asyncio.sleep(0.05)
    assert not waiting.done()

    def tell() -> None:
        found.set()
        bell.ring()

    await asyncio.to_thread(tell)
    assert await waiting == "news"


async def test_a_ring_between_looking_and_waiting_is_not_missed() -> None:
    bell, looks = Bell(), 0

    async def look() -> str | None:
        nonlocal looks
        looks += 1
        if looks == 1:
            bell.ring()
        return "news" if looks == 2 else None

    assert await bell.news(look, 60) == "news"


async def test_nothing_new_is_none_when_the_time_is_over() -> None:
    assert await Bell().news(nothing, 0.05) is None
    assert await Bell().news(nothing, 0) is None


async def test_closing_ends_every_wait() -> None:
    bell = Bell()
    waiting = asyncio.create_task(bell.news(nothing, 60))
    await asyncio.sleep(0.05)
    bell.close()
    assert await waiting is None


async def test_only_who_waits_for_it_looks_again() -> None:
    bell, looks = Bell(), {"web01": 0, "web02": 0, "": 0}

    async def look(about: str) -> str | None:
        looks[about] += 1
        return "news" if looks[about] > 1 else None

    waiting = {about: asyncio.create_task(bell.news(functools.partial(look, about), 60, about)) for about in looks}
    await asyncio.to_thread(eventually, lambda: all(looks.values()))
    bell.ring_for("web01")
    assert await waiting["web01"] == "news"
    assert await waiting[""] == "news"
    await asyncio.sleep(0.05)
    assert not waiting["web02"].done()
    assert looks["web02"] == 1
    bell.close()
    await waiting["web02"]
