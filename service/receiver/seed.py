"""Takes in seed files: what a server would have pushed first, brought on a disk, becomes its working state.

The operator's command reads the file and sends its frames here, one a request, as an agent would; each block is proven
before it is written. Nothing becomes a recovery point by it: the server's next push looks at what is there, and sends
the rest. A seed that is cut short or wrong therefore costs nothing but the bytes that the push has to bring then.

    POST /api/v1/seeds                                    SeedHeader -> {"session", "server"}
    POST /api/v1/seeds/SERVER/SESSION/volumes/N/blocks    a BLOCKS frame
    POST /api/v1/seeds/SERVER/SESSION/volumes/N/zeros     a ZEROS frame: blocks that the file does not name
    POST /api/v1/seeds/SERVER/SESSION/finish              {"roots"}: what the volumes have to hold now
    POST /api/v1/seeds/SERVER/SESSION/abandon
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TypeVar

from aiohttp import web

from agent.protocol.errors import Conflict, NotFound, RootMismatch, TrustError
from agent.protocol.frames import Kind, decode_single, encode_offer
from agent.protocol.messages import BeginRequest, to_json
from agent.protocol.seedfile import SeedHeader
from recovery.control import Server
from service.receiver.http import MAX_FRAME_BYTES, read_body, read_message, volume_of
from service.receiver.receiver import Receiver

SEEDER = "a seed import"
"""In the place of a machine: whose session it is."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedRoots:
    roots: list[str]


class SeedHttp:
    """Handlers under /api/v1/seeds; whoever calls has been let in by the API's own check, which says the tenant.

    `find` gives a server by id, and raises NotFound. `audit` gets tenant and words."""

    def __init__(
        self,
        receiver: Receiver,
        find: Callable[[str], Server],
        audit: Callable[[str, str], None],
        threads: Executor,
        tenant_of: Callable[[web.Request], str],
        ca_fingerprint: str,
    ) -> None:
        self._receiver = receiver
        self._find = find
        self._audit = audit
        self._threads = threads
        self._tenant_of = tenant_of
        self._ca_fingerprint = ca_fingerprint

    def routes(self) -> list[web.RouteDef]:
        session = "/api/v1/seeds/{server}/{session}"
        return [
            web.post("/api/v1/seeds", self._begin),
            web.post(session + "/volumes/{volume}/blocks", self._blocks),
            web.post(session + "/volumes/{volume}/zeros", self._zeros),
            web.post(session + "/finish", self._finish),
            web.post(session + "/abandon", self._abandon),
        ]

    async def _begin(self, request: web.Request) -> web.Response:
        header, tenant = await read_message(request, SeedHeader), self._tenant_of(request)

        def begin() -> dict[str, str]:
            server = self._owned(header, tenant)
            begun = self._receiver.begin(
                server.id,
                lambda: self._owned(header, tenant),
                BeginRequest(machine_id=SEEDER, volumes=header.volumes),
            )
            if any(standing.point for standing in begun.volumes):
                self._receiver.abandon(server.id, begun.session, "there are recovery points already")
                raise Conflict(
                    f"{server.name} has recovery points already, and a seed is for the time before the first",
                    "let the agent push: it sends only what differs",
                )
            self._audit(tenant, f"seed of {server.name} ({server.id}), made at {header.made_at}")
            return {"session": begun.session, "server": server.name}

        return web.json_response(await self._run(begin))

    async def _blocks(self, request: web.Request) -> web.Response:
        server_id, session, volume = self._session_of(request), request.match_info["session"], volume_of(request)
        body = await read_body(request, MAX_FRAME_BYTES)
        return web.json_response(
            to_json(await self._run(lambda: self._receiver.blocks(server_id, session, volume, body)))
        )

    async def _zeros(self, request: web.Request) -> web.Response:
        server_id, session, volume = self._session_of(request), request.match_info["session"], volume_of(request)
        body = await read_body(request, MAX_FRAME_BYTES)

        def make_zero() -> None:
            frame = decode_single(body, Kind.ZEROS)
            self._receiver.offer(server_id, session, volume, encode_offer(frame.indices, frame.digests))

        await self._run(make_zero)
        return web.json_response({})

    async def _finish(self, request: web.Request) -> web.Response:
        server_id, session_id = self._session_of(request), request.match_info["session"]
        wanted = await read_message(request, SeedRoots)

        def finish() -> None:
            sessions = self._receiver.sessions
            with sessions.locked_soon(server_id):
                session = sessions.get(session_id, server_id)
                found = [head.digests.root().hex() for head in session.heads]
                self._receiver.close_session(session, "the seed was taken in", remember=False)
            if found != wanted.roots:
                raise RootMismatch(
                    f"what {session.server_name} holds now is not what the seed file says at its end",
                    "no recovery point was touched; import it again, or let the agent push what is missing",
                )

        await self._run(finish)
        return web.json_response({})

    async def _abandon(self, request: web.Request) -> web.Response:
        server_id, session = self._session_of(request), request.match_info["session"]
        await self._run(lambda: self._receiver.abandon(server_id, session, "the import was given up"))
        return web.json_response({})

    def _owned(self, header: SeedHeader, tenant: str) -> Server:
        """The server that the seed is of. Raises NotFound, TrustError, Conflict."""
        if header.ca_fingerprint != self._ca_fingerprint:
            raise TrustError(
                f"this seed of {header.server_name} was written for another service",
                "import it where its agent is enrolled",
            )
        unknown = NotFound(f"no server {header.server_name} ({header.server_id}) is protected here", "check --tenant")
        try:
            server = self._find(header.server_id)
        except NotFound:
            raise unknown from None
        if server.tenant != tenant:
            raise unknown
        if server.owner != header.machine_id:
            raise Conflict(
                f"this seed was written by machine {header.machine_id}, and {server.name} is machine {server.owner}",
                "write it on the machine that is protected now",
            )
        return server

    def _session_of(self, request: web.Request) -> str:
        """The id of the server, whose session an import has begun in the caller's tenant. Raises NotFound."""
        server_id = request.match_info["server"]
        session = self._receiver.sessions.current(server_id)
        mine = session is not None and session.machine_id == SEEDER and session.tenant == self._tenant_of(request)
        if not mine or session is None or session.id != request.match_info["session"]:
            raise NotFound("this import has ended", "begin it again: understudy seed import FILE")
        return server_id

    def _run(self, work: Callable[[], T]) -> Awaitable[T]:
        return asyncio.get_running_loop().run_in_executor(self._threads, work)
