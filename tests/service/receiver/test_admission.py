"""Bodies in memory stay within the room, whoever sends them; nobody is kept out for ever."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.receiver.admission import Admission, Room, Ticket

ROOM = 64
SERVERS = st.sampled_from("abcde")
REQUESTS = st.lists(st.tuples(SERVERS, st.integers(0, ROOM), st.integers(0, 5)), max_size=40)
"""(server, size, how many of those that are there leave before it comes)"""


def bytes_of(tickets: list[Ticket], server_id: str | None = None) -> int:
    return sum(ticket.size_bytes for ticket in tickets if server_id in (None, ticket.server_id))


@given(REQUESTS, st.randoms(use_true_random=False))
def test_the_room_is_never_exceeded_and_everybody_gets_in_when_those_before_leave(requests, rng) -> None:  # type: ignore[no-untyped-def]
    room = Room(ROOM)
    inside: list[Ticket] = []
    waiting: list[Ticket] = []

    def settle() -> None:
        for ticket in room.let_in():
            waiting.remove(ticket)
            others = ROOM - bytes_of(inside)
            alone = not bytes_of(inside, ticket.server_id)
            assert alone or bytes_of(inside, ticket.server_id) + ticket.size_bytes <= others
            inside.append(ticket)
        assert bytes_of(inside) <= ROOM

    for server_id, size_bytes, leaving in requests:
        for _ in range(leaving):
            group = rng.choice([inside, waiting])  # those that wait may give up as well
            if group:
                room.leave(group.pop(rng.randrange(len(group))))
                settle()
        waiting.append(room.ask(server_id, size_bytes))
        settle()
    while inside:
        room.leave(inside.pop(rng.randrange(len(inside))))
        settle()
    assert not waiting
    whole = room.ask("last", ROOM)
    assert room.let_in() == [whole], "what left gave back all that it had"


@given(REQUESTS)
def test_a_server_gets_its_own_requests_in_their_order(requests) -> None:  # type: ignore[no-untyped-def]
    room = Room(ROOM)
    asked = [room.ask(server_id, size_bytes) for server_id, size_bytes, _ in requests]
    entered: list[Ticket] = []
    while coming := room.let_in():
        entered += coming
        for ticket in coming:
            room.leave(ticket)
    for server_id in "abcde":
        assert [t for t in entered if t.server_id == server_id] == [t for t in asked if t.server_id == server_id]


def test_servers_that_take_all_they_can_get_leave_room_for_the_next() -> None:
    room = Room(ROOM)
    for server_id in "abc" * 100:
        room.ask(server_id, 1)
    inside = Counter(ticket.server_id for ticket in room.let_in())
    assert max(inside.values()) <= ROOM // 4 + 1
    newcomer = room.ask("d", 8)
    assert room.let_in() == [newcomer]


def test_a_server_alone_gets_half_of_the_room() -> None:
    room = Room(ROOM)
    for _ in range(ROOM):
        room.ask("a", 1)
    assert bytes_of(room.let_in()) == ROOM // 2


def test_nobody_passes_a_large_request_for_which_a_full_room_has_no_place_yet() -> None:
    room = Room(ROOM)
    first, second = room.ask("a", ROOM // 2), room.ask("b", ROOM // 2)
    assert room.let_in() == [first, second]
    large = room.ask("c", ROOM)
    room.ask("d", 1)
    room.leave(first)
    assert room.let_in() == []
    room.leave(second)
    assert room.let_in() == [large]


def test_what_never_fits_is_refused() -> None:
    with pytest.raises(ValueError, match="never fit"):
        Room(ROOM).ask("a", ROOM + 1)


async def test_who_is_cancelled_or_fails_gives_back_what_it_had() -> None:
    admission = Admission(ROOM)
    inside = asyncio.Event()

    async def stay(server_id: str) -> None:
        async with admission.of(server_id, ROOM):
            inside.set()
            await asyncio.Event().wait()

    holding = asyncio.create_task(stay("a"))
    await inside.wait()
    waiting = asyncio.create_task(stay("b"))
    third = asyncio.create_task(stay("c"))
    await asyncio.sleep(0)
    inside.clear()
    waiting.cancel()
    holding.cancel()
    await inside.wait()
    third.cancel()
    await asyncio.gather(holding, waiting, third, return_exceptions=True)
    with pytest.raises(LookupError):
        async with admission.of("d", ROOM):
            raise LookupError
    async with admission.of("e", ROOM):
        pass
