"""The way home, one question after the other: network, service, pairing, disks, copying.

What was reached is kept: going on begins where it stopped.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from agent.client import DEFAULT_PATIENCE_SECONDS, ServiceClient, unverified_context
from agent.identity import enroll
from agent.pairing import pair
from agent.protocol.errors import TransportError, UnderstudyError, UsageError
from agent.protocol.messages import HomewardReply, Point
from agent.protocol.pairing import Code
from agent.pull.pull import PullResult, find_point, pull
from agent.rescue.address import url_of
from agent.rescue.console import Console, size_text
from agent.rescue.contents import Disk
from agent.rescue.machine import Machine
from agent.state import State

NETWORK_SECONDS = 60.0
POLL_SECONDS = 2.0
RETRY_SECONDS = 5.0
RESTART_SECONDS = 10.0

T = TypeVar("T")


class Interrupted(Exception):
    """Somebody pressed Enter: they want the menu."""


def tell(console: Console, error: UnderstudyError) -> None:
    """What did not work, and the way out."""
    console.say(f"\nIt did not work: {error.message}.")
    if error.hint:
        console.say(f"What to do: {error.hint}.")


class Way:
    """`restart_seconds`: how long one may still stop the restart at the end; `patience_seconds`: how long a line may be
    down before that is told."""

    def __init__(
        self,
        console: Console,
        machine: Machine,
        state: State,
        *,
        poll_seconds: float = POLL_SECONDS,
        restart_seconds: float = RESTART_SECONDS,
        patience_seconds: float = DEFAULT_PATIENCE_SECONDS,
    ) -> None:
        self._console = console
        self._machine = machine
        self._state = state
        self._poll_seconds = poll_seconds
        self._restart_seconds = restart_seconds
        self._patience_seconds = patience_seconds
        self._url: str | None = None
        self._server: str | None = None
        """What this machine is to become, once it was paired."""
        self._disks: list[Disk] = []
        """For the volumes of a point in their order; empty: not chosen yet."""
        self._copied: set[str] = set()
        """Points whose every volume was pulled onto the disks chosen, and verified."""
        self._said = ""

    def forget_disks(self) -> None:
        self._disks = []
        self._copied.clear()

    def forget_pairing(self) -> None:
        self.forget_disks()
        self._server = None

    def use_service(self, url: str) -> None:
        self.forget_pairing()
        self._url = url

    async def go(self) -> None:
        """Returns when the server was handed home, and its disks are in this machine. Raises UnderstudyError, and
        Interrupted when Enter was pressed."""
        await self._have_network()
        await self._have_service()
        await self._have_pairing()
        async with ServiceClient.of(self._state, self._patience_seconds) as client:
            newest = await find_point(client, "latest")
            await self._have_disks(newest)
            reply = await self._ask_what_to_do(client)
            if reply.action in ("none", "wait"):
                await self._copy(client, newest)
            await self._follow(client)
        self._console.say(f"\n{self._server} is handed home: this machine starts from its own disk now.")
        self._console.say("Take the rescue medium out, if it is not ejected by itself.")
        await self._unless_stopped(asyncio.sleep(self._restart_seconds))

    async def _have_network(self) -> None:
        waited = 0.0
        while not any(addresses for _, addresses in self._machine.addresses()):
            if waited == 0:
                self._console.say("Waiting for an address from the network (Enter: the menu) ...")
            if waited > NETWORK_SECONDS:
                cards = ", ".join(card for card, _ in self._machine.addresses()) or "none that this system knows"
                raise UsageError(
                    f"the network gave this machine no address; its network cards: {cards}",
                    "check the cable, then go on (1); or set an address by hand (2)",
                )
            await self._unless_stopped(asyncio.sleep(1))
            waited += 1

    async def _have_service(self) -> None:
        if self._url is None:
            given = self._machine.given_url()
            self._url = given or url_of(await self._console.ask("Where is the Understudy service? Name or address:"))
        try:
            async with ServiceClient(self._url, unverified_context(), patience_seconds=5) as client:
                await client.call("GET", "/ca.pem", [])
        except TransportError as error:
            where, self._url = self._url, None
            raise UsageError(
                f"no Understudy service answers at {where}: {error.message}",
                "check its address, and that it listens on more than its own machine (serve --listen 0.0.0.0:8470)",
            ) from None

    async def _have_pairing(self) -> None:
        if self._server is not None:
            return
        assert self._url is not None

        def show(code: Code, seconds: float) -> None:
            self._console.say(f"\nThe service at {self._url} has to be told who this machine is. There, type:\n")
            self._console.say(f"    understudy pair {code.shown} --server NAME\n")
            self._console.say(f"NAME is the server that this machine becomes. The code is good for {seconds / 60:.0f}")
            self._console.say("minutes; then another is shown here. (Enter: the menu)")

        def refused(error: UnderstudyError) -> None:
            tell(self._console, error)

        self._console.say(f"This machine: {self._machine.description()}")
        grant = await self._unless_stopped(pair(self._url, self._machine.description(), show, refused))
        if self._machine.set_clock(grant.now):
            self._console.say("This machine's clock was wrong; it is set by the service's.")
        await enroll(self._state, self._url, grant.token)
        self._server = grant.server
        self._console.say(f"\nPaired: this machine is to become {self._server}.")

    async def _have_disks(self, point: Point) -> None:
        if len(self._disks) == len(point.volumes):
            return
        chosen: list[Disk] = []
        for number, volume in enumerate(point.volumes, 1):
            which = f"disk {number} of {len(point.volumes)}" if len(point.volumes) > 1 else "the disk"
            self._console.say(f"\nWhich is to become {which} of {self._server} ({size_text(volume.size_bytes)})?")
            chosen.append(await self._choose(volume.size_bytes, [disk.name for disk in chosen]))
        self._console.say(f"\nTHIS IS LOST, and replaced by {self._server} as it was at {point.taken_at}:")
        for disk in chosen:
            self._console.say(f"  all of {_line(disk)}")
        self._console.say("(Of an older copy of this server only what differs is fetched.)")
        typed = await self._console.ask(f"To go on, type the server's name, {self._server}; anything else stops here:")
        if typed != self._server:
            raise UsageError("the name was not typed, and nothing was written", f"go on (1), and type {self._server}")
        self._disks = chosen

    async def _choose(self, size_bytes: int, taken: list[str]) -> Disk:
        while True:
            found = self._machine.disks()
            if not found:
                raise UsageError(
                    "this machine shows no disks", "check its controller's settings (RAID, AHCI), and its cables"
                )
            for number, disk in enumerate(found, 1):
                small = "" if disk.size_bytes >= size_bytes else "  -- TOO SMALL"
                self._console.say(f"  {number}  {_line(disk)}{small}")
            typed = await self._console.ask("Number of the disk (Enter: look again; m: the menu):")
            if typed.lower() == "m":
                raise Interrupted
            if not typed.isdecimal() or not 1 <= int(typed) <= len(found):
                continue
            disk = found[int(typed) - 1]
            if disk.size_bytes < size_bytes:
                self._console.say(f"{disk.name} is smaller than the server's disk: choose another.")
            elif disk.name in taken:
                self._console.say(f"{disk.name} is one of its other disks already: choose another.")
            else:
                return disk

    async def _copy(self, client: ServiceClient, point: Point) -> None:
        if point.id in self._copied:
            return
        self._console.say(f"\nCopying {self._server} as of {point.taken_at} (Enter: stop, and the menu)")
        for index, disk in enumerate(self._disks):
            result = await self._patiently(functools.partial(self._pull, client, point, index, disk.name))
            self._console.say(
                f"  {disk.name}: {size_text(result.written_bytes)} written, read back and right; "
                f"{size_text(result.received_bytes)} over the network, {result.seconds:.0f} s"
            )
        self._copied.add(point.id)

    def _pull(self, client: ServiceClient, point: Point, volume: int, onto: str) -> Coroutine[Any, Any, PullResult]:
        def show(done: int, total: int) -> None:
            self._console.progress(onto, done, total)

        return pull(client, point, volume, onto, on_progress=show)

    async def _follow(self, client: ServiceClient) -> None:
        """Do what the failback asks for, until the server was handed home."""
        while True:
            reply = await self._ask_what_to_do(client)
            if reply.point is not None:
                point_id = reply.point
                await self._copy(client, await self._patiently(lambda: find_point(client, point_id)))  # noqa: B023
            if reply.action == "boot":
                return
            await self._unless_stopped(asyncio.sleep(self._poll_seconds))

    async def _ask_what_to_do(self, client: ServiceClient) -> HomewardReply:
        reply = await self._patiently(lambda: client.ask("/agent/v1/homeward", None, HomewardReply, method="GET"))
        text = f"{reply.stage}: {reply.words}" if reply.stage else reply.words
        if text != self._said:
            self._said = text
            self._console.say(f"\n[{text}]")
        return reply

    async def _patiently(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The work's result, however often the line breaks meanwhile: a failback takes hours, and nobody watches."""
        told = False
        while True:
            try:
                return await self._unless_stopped(work())
            except UnderstudyError as error:
                if not error.retryable:
                    raise
                if not told:
                    tell(self._console, error)
                    self._console.say("It is tried again until it works (Enter: the menu).")
                told = True
                await self._unless_stopped(asyncio.sleep(RETRY_SECONDS))

    async def _unless_stopped(self, work: Coroutine[Any, Any, T]) -> T:
        """The work's result. Raises Interrupted when Enter is pressed before it is done."""
        doing = asyncio.ensure_future(work)
        stopped = asyncio.ensure_future(self._console.key())
        try:
            await asyncio.wait({doing, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if doing.done():
                return doing.result()
            raise Interrupted
        finally:
            for task in (doing, stopped):
                task.cancel()
            await asyncio.gather(doing, stopped, return_exceptions=True)


def _line(disk: Disk) -> str:
    words = [disk.name, size_text(disk.size_bytes), disk.model, disk.serial]
    return f"{'  '.join(filter(None, words))}  holds: {disk.holds}"
