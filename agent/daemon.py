"""The daemon: says hello, pushes on schedule and on the service's word, and never gives up."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import signal
import time
from pathlib import Path

from agent import __version__
from agent.allowed import run_allowed
from agent.client import ServiceClient
from agent.fencing import FENCE, UNFENCE, Fencing
from agent.identity import renew_if_due
from agent.inventory import collect, machine_id
from agent.protocol.errors import Conflict, TrustError, UnderstudyError
from agent.protocol.grid import DEFAULT_BLOCK_BYTES
from agent.protocol.messages import Command, CommandResult, Hello, HelloReply, VolumeDeclaration, to_json
from agent.push.push import push
from agent.readiness import boot_files
from agent.sources import places
from agent.state import State

HELLO_WAIT_SECONDS = 20
RETRY_SECONDS = 5.0
MAX_RETRY_SECONDS = 60.0

log = logging.getLogger("understudy-agent")


async def run(state: State) -> None:
    """Run until SIGTERM or SIGINT. Raises UsageError if there is no identity; other failures are logged and retried."""
    state.identity()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    work = asyncio.create_task(_Daemon(state).run())
    ended = asyncio.create_task(stop.wait())
    await asyncio.wait({work, ended}, return_when=asyncio.FIRST_COMPLETED)
    work.cancel()
    ended.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await work


class _Daemon:
    def __init__(self, state: State) -> None:
        self._state = state
        self._machine_id = machine_id()
        self._said_stand_down = ""
        self._fencing = Fencing(state)
        self._epoch = 0
        self._described: tuple[str, list[str]] | None = None
        self._inventory: dict[str, object] | None = None
        self._interval_seconds = 0
        self._pushed_at = float("-inf")

    async def run(self) -> None:
        delay_seconds = RETRY_SECONDS
        log.info("understudy-agent %s runs as %s", __version__, self._state.identity().server_name)
        while True:
            try:
                # One connection for many hellos: a service has thousands of agents, and handshakes are dear.
                async with ServiceClient.of(self._state, patience_seconds=0) as client:
                    while not await renew_if_due(self._state, client):
                        await self._once(client)
                        delay_seconds = RETRY_SECONDS
                log.info("the certificate was renewed")
            except UnderstudyError as error:
                log.warning("%s", error)
                if isinstance(error, TrustError):
                    delay_seconds = MAX_RETRY_SECONDS
                await asyncio.sleep(delay_seconds * random.uniform(0.7, 1.3))  # noqa: S311  # spreads load, no secret
                delay_seconds = min(delay_seconds * 2, MAX_RETRY_SECONDS)
            except Exception:  # a fault of ours must not leave the server without protection
                log.exception("this should not happen; going on in %d s", MAX_RETRY_SECONDS)
                await asyncio.sleep(MAX_RETRY_SECONDS)

    async def _once(self, client: ServiceClient) -> None:
        """One hello, and what follows from it."""
        protected = self._state.protected()
        found = (await asyncio.to_thread(boot_files, Path("/")), protected)
        if found != self._described:  # at the start, and when a new kernel was put in place, or other disks named
            self._inventory, self._described = await asyncio.to_thread(collect, protected), found
        fence = await asyncio.to_thread(self._fencing.now)
        due_seconds = self._pushed_at + self._interval_seconds - time.monotonic()
        if fence is not None:
            due_seconds = HELLO_WAIT_SECONDS  # it pushes when it is asked to, and only then
        reply = await client.ask(
            "/agent/v1/hello",
            Hello(
                machine_id=self._machine_id,
                agent_version=__version__,
                wait_seconds=int(min(max(due_seconds, 0), HELLO_WAIT_SECONDS)),
                volumes=await asyncio.to_thread(self._volumes),
                inventory=self._inventory,
                fenced=await asyncio.to_thread(lambda: self._fencing.said),
            ),
            HelloReply,
        )
        self._inventory = None  # said once is enough
        self._interval_seconds = reply.interval_seconds
        if reply.stand_down:
            if reply.stand_down != self._said_stand_down:
                log.warning("standing down: %s", reply.stand_down)
            self._said_stand_down = reply.stand_down
            if reply.fence:
                await asyncio.to_thread(self._fencing.stand_down, reply.epoch)
            await asyncio.sleep(RETRY_SECONDS)
            return
        if self._said_stand_down:
            self._pushed_at = float("-inf")  # it was away from protection for long enough
            self._said_stand_down = ""
        self._epoch = reply.epoch
        if fence is not None and fence.epoch < reply.epoch:
            log.info("this machine is the server again")
            await asyncio.to_thread(self._fencing.lift)
            fence = None
        for command in reply.commands:
            await self._obey(command)
        due = time.monotonic() - self._pushed_at >= self._interval_seconds
        if due and fence is None and not reply.commands and self._state.protected():
            await self._push(None)

    async def _obey(self, command: Command) -> None:
        """Carry out a command and report how it ended, success or not."""
        result: CommandResult
        if command.kind not in ("push", "exec", FENCE, UNFENCE):
            error = Conflict(f"this agent does not know the command {command.kind!r}", "update the agent")
            result = CommandResult(command=command.id, error=error.to_json()["error"])
        else:
            try:
                if command.kind == "exec":
                    log.info("the service asks for the command %s", command.label)
                    output = await asyncio.to_thread(run_allowed, self._state, command.label)
                    result = CommandResult(command=command.id, output=output)
                elif command.kind == FENCE:
                    log.warning("the service asks this server to stop what it does for others")
                    output = await asyncio.to_thread(self._fencing.put_up, self._epoch)
                    result = CommandResult(command=command.id, output=output)
                elif command.kind == UNFENCE:
                    await asyncio.to_thread(self._fencing.lift)
                    result = CommandResult(command=command.id, output="this machine is the server again")
                else:
                    result = CommandResult(command=command.id, point=await self._push(command.label))
            except UnderstudyError as error:
                log.warning("%s", error)
                result = CommandResult(command=command.id, error=error.to_json()["error"])
        async with ServiceClient.of(self._state) as client:
            await client.call(
                "POST", f"/agent/v1/commands/{command.id}", [json.dumps(to_json(result)).encode()], "application/json"
            )

    async def _push(self, label: str | None) -> str:
        """One push; its point's id. A connection of its own, so that its bytes are its own."""
        async with ServiceClient.of(self._state) as client:
            result = await push(self._state, client, label=label)
        self._pushed_at = time.monotonic()
        log.info(
            "point %s: %d bytes changed, %d sent, %.2f s, frozen %.2f s",
            result.point,
            result.changed_bytes,
            result.sent_bytes,
            result.seconds,
            result.frozen_seconds,
        )
        return result.point

    def _volumes(self) -> list[VolumeDeclaration]:
        """What is protected, as it is now or was last seen; what is wrong with it is said at the next push."""
        return [
            VolumeDeclaration(
                path=place.path,
                size_bytes=place.size_bytes,
                block_bytes=DEFAULT_BLOCK_BYTES,
                found_at=place.found_at,
            )
            for place in places(self._state)
            if place.size_bytes  # one in doubt is told of as it was: this is a server, and no repair target
        ]
