"""Admission: how many bytes of requests' bodies are in memory at once, and whose.

A body is read from its line only once there is room for all of it. Until then it waits where it is, in the sockets of
both ends: who sends faster than we write is held up by TCP, and fifty agents need no more memory than a few.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass

ROOM_BYTES = 48 << 20
"""Half of it for one server alone: six requests of 4 MiB, while two more are on their way."""


@dataclass(slots=True, eq=False)
class Ticket:
    """One request: of which server, and how long its body may be."""

    server_id: str
    size_bytes: int
    is_in: bool = False


class Room:
    """Who may come in next. Pure: no clock, no waiting.

    First come, first served, but that a server has at most as much inside as is free besides: half of the room when it
    is alone, a quarter when two others take all that they can get. So some servers that let their bodies trickle in
    leave room for the next one, which passes those that wait for their own. A server that has nothing inside is only
    kept out by a full room, and then nobody passes it: each gets in when those before it have left.
    """

    def __init__(self, room_bytes: int) -> None:
        self._room_bytes = room_bytes
        self._free_bytes = room_bytes
        self._inside: Counter[str] = Counter()
        """Bytes of each server."""
        self._waiting: dict[Ticket, None] = {}
        """In the order in which they came."""

    def ask(self, server_id: str, size_bytes: int) -> Ticket:
        """Queue up. `size_bytes` is at most the room's size."""
        if size_bytes > self._room_bytes:
            raise ValueError(f"{size_bytes} bytes never fit into a room of {self._room_bytes}")
        ticket = Ticket(server_id, size_bytes)
        self._waiting[ticket] = None
        return ticket

    def let_in(self) -> list[Ticket]:
        """Those who came in just now. To be called after each `ask` and `leave`."""
        entering = []
        held_up: set[str] = set()
        for ticket in self._waiting:
            inside = self._inside[ticket.server_id]
            if ticket.server_id in held_up or (inside and inside + ticket.size_bytes > self._free_bytes):
                held_up.add(ticket.server_id)
                continue
            if ticket.size_bytes > self._free_bytes:
                break
            self._inside[ticket.server_id] += ticket.size_bytes
            self._free_bytes -= ticket.size_bytes
            ticket.is_in = True
            entering.append(ticket)
        for ticket in entering:
            del self._waiting[ticket]
        return entering

    def leave(self, ticket: Ticket) -> None:
        """It is done, or does not want to wait any more."""
        if not ticket.is_in:
            del self._waiting[ticket]
            return
        self._free_bytes += ticket.size_bytes
        self._inside[ticket.server_id] -= ticket.size_bytes
        if not self._inside[ticket.server_id]:
            del self._inside[ticket.server_id]


class Admission:
    """The room, with waiting; for one event loop."""

    def __init__(self, room_bytes: int = ROOM_BYTES) -> None:
        self._room = Room(room_bytes)
        self._called: dict[Ticket, asyncio.Event] = {}

    @contextlib.asynccontextmanager
    async def of(self, server_id: str, size_bytes: int) -> AsyncIterator[None]:
        """Inside there is room for so many bytes."""
        ticket = self._room.ask(server_id, size_bytes)
        called = self._called[ticket] = asyncio.Event()
        self._call()
        try:
            await called.wait()
            yield
        finally:
            del self._called[ticket]
            self._room.leave(ticket)
            self._call()

    def _call(self) -> None:
        for ticket in self._room.let_in():
            self._called[ticket].set()
