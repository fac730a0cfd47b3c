"""What a repair target asks while its server's failback goes on: what to do now."""

from __future__ import annotations

import asyncio

from aiohttp import web

from agent.protocol.messages import HomewardReply, to_json
from recovery.guidance import guidance
from service.identity.gatekeeper import Gatekeeper
from service.store.runs import RunRows
from service.store.servers import ServerStore


def homeward_route(servers: ServerStore, runs: RunRows) -> web.RouteDef:
    """GET /agent/v1/homeward. About the server that the certificate is for."""

    async def handler(request: web.Request) -> web.Response:
        caller = Gatekeeper.agent_of(request)

        def look() -> HomewardReply:
            server = servers.get(caller.server_id)
            return guidance(runs.live(server.tenant), server.id, server.name)

        return web.json_response(to_json(await asyncio.to_thread(look)))

    return web.get("/agent/v1/homeward", handler)
