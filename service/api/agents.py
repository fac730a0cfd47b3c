"""What agents ask for besides moving data: identity, heartbeat, commands."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from dataclasses import dataclass

from aiohttp import web

from agent.protocol.errors import BadMessage, UnderstudyError
from agent.protocol.messages import (
    MAX_VOLUMES,
    Command,
    CommandResult,
    EnrollReply,
    EnrollRequest,
    Hello,
    HelloReply,
    RenewRequest,
    to_json,
)
from service.bell import Bell
from service.identity.enrolment import Enrolment
from service.identity.gatekeeper import AgentIdentity, Gatekeeper
from service.identity.greetings import Greetings
from service.identity.ownership import Claim, Decision, StandDown, Take
from service.identity.sightings import Sightings
from service.receiver.http import read_message
from service.store.audit import AuditStore
from service.store.commands import CommandStore
from service.store.rows import CommandRow, ServerRow, ServerState
from service.store.servers import ServerStore

MAX_WAIT_SECONDS = 30
MAX_FENCED_CHARACTERS = 300


@dataclass(frozen=True, slots=True)
class _Standing:
    """How an agent stands at one look."""

    server: ServerRow
    decision: Decision
    commands: list[CommandRow]


class AgentHttp:
    """Handlers under /agent/v1. `interval_seconds` is how often agents push of their own accord."""

    def __init__(
        self,
        enrolment: Enrolment,
        gatekeeper: Gatekeeper,
        servers: ServerStore,
        commands: CommandStore,
        audit: AuditStore,
        bell: Bell,
        sightings: Sightings,
        interval_seconds: int,
    ) -> None:
        self._enrolment = enrolment
        self._gatekeeper = gatekeeper
        self._servers = servers
        self._commands = commands
        self._audit = audit
        self._bell = bell
        self._sightings = sightings
        self._interval_seconds = interval_seconds
        self._greetings = Greetings(servers.greeted_all)
        self._told: dict[str, int] = {}
        """What each agent said of its volumes when it was last written down, as a hash."""

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/agent/v1/enroll", self._enroll),
            web.post("/agent/v1/renew", self._renew),
            web.post("/agent/v1/hello", self._hello),
            web.post("/agent/v1/commands/{command}", self._result),
        ]

    async def _enroll(self, request: web.Request) -> web.Response:
        message = await read_message(request, EnrollRequest)

        def enroll() -> EnrollReply:
            reply = self._enrolment.enroll(message)
            tenant = self._servers.get(reply.server_id).tenant
            detail = f"{reply.server_name} ({reply.server_id}): machine {message.machine_id}, {message.hostname}"
            self._audit.add(tenant, request.remote or "agent", "enroll", detail)
            return reply

        return web.json_response(to_json(await asyncio.to_thread(enroll)))

    async def _renew(self, request: web.Request) -> web.Response:
        caller = self._gatekeeper.agent_of(request)
        message = await read_message(request, RenewRequest)
        return web.json_response(
            to_json(await asyncio.to_thread(self._enrolment.renew, caller.serial, message.csr_pem))
        )

    async def _hello(self, request: web.Request) -> web.Response:
        caller = self._gatekeeper.agent_of(request)
        hello = await read_message(request, Hello)
        if len(hello.volumes) > MAX_VOLUMES:
            raise BadMessage(f"{len(hello.volumes)} volumes; at most {MAX_VOLUMES} are possible")
        standing: _Standing | None = None

        async def look() -> _Standing | None:
            # Ownership is looked at each time again: a failover must not wait for the agent's next hello.
            nonlocal standing
            found = await self._greet(caller, hello) if standing is None else None
            if found is None:
                look_up = self._arrive if standing is None else self._look
                found = await asyncio.to_thread(look_up, caller, hello)
            standing = found
            return found if found.commands or isinstance(found.decision, StandDown) else None

        await self._bell.news(look, min(hello.wait_seconds, MAX_WAIT_SECONDS), caller.server_id)
        assert standing is not None
        return web.json_response(to_json(self._reply(standing)))

    async def _result(self, request: web.Request) -> web.Response:
        caller = self._gatekeeper.agent_of(request)
        result = await read_message(request, CommandResult)
        outcomes = [what for what in (result.point, result.output, result.error) if what is not None]
        if result.command != request.match_info["command"] or len(outcomes) != 1:
            raise BadMessage("a command's result names that command, and one of point, output and error")
        error = None if result.error is None else str(UnderstudyError.from_json({"error": result.error}))
        await asyncio.to_thread(
            lambda: self._commands.finish(
                result.command, caller.server_id, point=result.point, output=result.output, error=error
            )
        )
        return web.json_response({})

    async def _greet(self, caller: AgentIdentity, hello: Hello) -> _Standing | None:
        """The owner of a server says what it said before, and nothing waits for it; None: it is not as simple as that.

        That is nearly every hello."""
        if hello.inventory is not None or self._told.get(caller.server_id) != hash(tuple(hello.volumes)):
            return None
        server, asked = await self._greetings.of(caller.server_id)
        decision = self._gatekeeper.known_decision(server, hello.machine_id, caller.serial)
        if asked or server.last_seen_at is None or not isinstance(decision, Take):
            return None
        self._sightings.note(server, time.time())
        return _Standing(server, decision, [])

    def _arrive(self, caller: AgentIdentity, hello: Hello) -> _Standing:
        """The owner made contact: write down what it says of itself."""
        standing = self._look(caller, hello)
        if isinstance(standing.decision, StandDown | Claim):
            return standing

        now = time.time()
        said = hash(tuple(hello.volumes))

        def heard(server: ServerRow) -> ServerRow:
            # what the server has at home is not what its instance has
            keeps = server.state is ServerState.FAILED_OVER and bool(server.inventory)
            return dataclasses.replace(
                server,
                last_seen_at=now,
                volumes=tuple(hello.volumes) or server.volumes,
                inventory=server.inventory if keeps or hello.inventory is None else hello.inventory,
            )

        server = self._servers.change(caller.server_id, heard)
        self._told[caller.server_id] = said
        return dataclasses.replace(standing, server=server)

    def _look(self, caller: AgentIdentity, hello: Hello) -> _Standing:
        row, asked = self._servers.greeted(caller.server_id)
        # A machine that protects nothing (a repair target) does not take the identity from the one that does.
        server, decision = self._gatekeeper.admit(
            caller.server_id,
            hello.machine_id,
            caller.serial,
            claims=bool(hello.volumes),
            row=row,
            fenced=hello.fenced[:MAX_FENCED_CHARACTERS] if hello.fenced else None,
        )
        takes = asked and not isinstance(decision, StandDown | Claim)
        return _Standing(server, decision, self._commands.deliver(server.id) if takes else [])

    def _reply(self, standing: _Standing) -> HelloReply:
        stand_down = None
        if isinstance(standing.decision, StandDown):
            stand_down = f"{standing.decision.reason} ({standing.decision.hint})"
        return HelloReply(
            server_id=standing.server.id,
            server_name=standing.server.name,
            epoch=standing.server.epoch,
            interval_seconds=self._interval_seconds,
            stand_down=stand_down,
            fence=isinstance(standing.decision, StandDown) and standing.decision.was_the_server,
            commands=[Command(id=row.id, kind=row.kind, label=row.label) for row in standing.commands],
        )
