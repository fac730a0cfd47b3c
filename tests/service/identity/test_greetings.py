"""Hellos of a moment share one look at the database, and each gets its own answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Collection, Mapping

import pytest

from agent.protocol.errors import NotFound, StorageError
from service.identity.greetings import Greeted, Greetings
from service.store.rows import ServerRow


class Looks:
    """A look that counts; servers named `gone...` there are not. It waits while `go` is not set."""

    def __init__(self) -> None:
        self.asked: list[set[str]] = []
        self.fails: Exception | None = None
        self.go = threading.Event()
        self.go.set()
        self.begun = threading.Semaphore(0)

    def __call__(self, server_ids: Collection[str]) -> Mapping[str, Greeted]:
        self.asked.append(set(server_ids))
        self.begun.release()
        self.go.wait(60)
        if self.fails:
            raise self.fails
        return {one: (row(one), one == "busy") for one in server_ids if not one.startswith("gone")}


def row(server_id: str) -> ServerRow:
    return ServerRow(id=server_id, tenant="default", name=server_id, created_at=0.0)


async def test_those_that_come_within_a_moment_are_looked_up_together() -> None:
    looks = Looks()
    greetings = Greetings(looks, gathering_seconds=0.05)
    found = await asyncio.gather(*(greetings.of(name) for name in ("web01", "busy", "web01", "db01")))
    assert [(server.id, asked) for server, asked in found] == [
        ("web01", False), ("busy", True), ("web01", False), ("db01", False)
    ]  # fmt: skip
    assert looks.asked == [{"web01", "busy", "db01"}]


async def test_who_comes_while_a_look_is_under_way_gets_one_of_its_own() -> None:
    looks = Looks()
    looks.go.clear()
    greetings = Greetings(looks, gathering_seconds=0)
    early = asyncio.create_task(greetings.of("web01"))
    await asyncio.to_thread(looks.begun.acquire)
    late = asyncio.create_task(greetings.of("web01"))
    await asyncio.to_thread(looks.begun.acquire)
    looks.go.set()
    await asyncio.gather(early, late)
    assert looks.asked == [{"web01"}, {"web01"}]


async def test_a_server_that_there_is_not_concerns_nobody_else() -> None:
    greetings = Greetings(Looks(), gathering_seconds=0)
    gone, known = await asyncio.gather(greetings.of("gone01"), greetings.of("web01"), return_exceptions=True)
    assert isinstance(gone, NotFound)
    assert not isinstance(known, BaseException)


async def test_a_look_that_fails_is_everybodys_failure_and_the_next_one_is_tried() -> None:
    looks = Looks()
    looks.fails = StorageError("the disk is gone")
    greetings = Greetings(looks, gathering_seconds=0)
    failed = await asyncio.gather(greetings.of("web01"), greetings.of("db01"), return_exceptions=True)
    assert [type(one) for one in failed] == [StorageError, StorageError]
    looks.fails = None
    assert (await greetings.of("web01"))[0].id == "web01"


async def test_who_goes_away_takes_the_answer_from_nobody() -> None:
    looks = Looks()
    greetings = Greetings(looks, gathering_seconds=0.02)
    going, staying = asyncio.create_task(greetings.of("web01")), asyncio.create_task(greetings.of("web01"))
    await asyncio.sleep(0)
    going.cancel()
    with pytest.raises(asyncio.CancelledError):
        await going
    assert (await staying)[0].id == "web01"
