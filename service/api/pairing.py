"""Pairing over HTTP. The machine's side is open to everybody: what protects it is the code, not who may ask."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web

from agent.protocol.errors import PairingError
from agent.protocol.messages import (
    PairingGrant,
    PairingLook,
    PairingOpened,
    PairingProof,
    PairingSealed,
    PairingStanding,
    to_json,
)
from agent.protocol.pairing import Answer, Code, Opening
from service.api.middleware import PAIRING_PREFIX
from service.bell import Bell
from service.identity.enrolment import Enrolment
from service.identity.pairing import LIFE_SECONDS, Pairing, Pairings, PairingState
from service.receiver.http import read_message
from service.store.audit import AuditStore
from service.store.rows import DEFAULT_TENANT
from service.store.servers import ServerStore

MAX_WAIT_SECONDS = 30
MACHINE_ANSWERS_SECONDS = 45.0
TOKEN_HOURS = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeTyped:
    code: str
    server: str
    tenant: str = DEFAULT_TENANT


class PairingHttp:
    """Handlers under /agent/v1/pairings and /api/v1/pairings."""

    def __init__(
        self,
        pairings: Pairings,
        enrolment: Enrolment,
        servers: ServerStore,
        audit: AuditStore,
        bell: Bell,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._pairings = pairings
        self._enrolment = enrolment
        self._servers = servers
        self._audit = audit
        self._bell = bell
        self._now = now

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post(PAIRING_PREFIX, self._open),
            web.post(PAIRING_PREFIX + "/{pairing}", self._look),
            web.post(PAIRING_PREFIX + "/{pairing}/proof", self._prove),
            web.post("/api/v1/pairings", self._type),
        ]

    async def _open(self, request: web.Request) -> web.Response:
        opening = await read_message(request, Opening)
        made = self._pairings.open(opening, request.remote or "")
        return web.json_response(to_json(PairingOpened(pairing=made.id, seconds=LIFE_SECONDS)))

    async def _look(self, request: web.Request) -> web.Response:
        """As soon as the code was typed, or without an answer after `wait_seconds`."""
        pairing_id = request.match_info["pairing"]
        look = await read_message(request, PairingLook)
        if look.refuse:
            self._pairings.refuse(pairing_id)
            self._bell.ring(pairing_id)
        wait_seconds = min(max(look.wait_seconds, 0), MAX_WAIT_SECONDS)
        answer = await self._bell.news(lambda: self._answer(pairing_id), wait_seconds, pairing_id)
        if answer is None:
            return web.json_response(to_json(PairingStanding()))
        return web.json_response(to_json(PairingStanding(element=answer.element, proof=answer.proof)))

    async def _answer(self, pairing_id: str) -> Answer | None:
        return self._pairings.get(pairing_id).answer

    async def _prove(self, request: web.Request) -> web.Response:
        pairing_id = request.match_info["pairing"]
        message = await read_message(request, PairingProof)
        try:
            sealed = await asyncio.to_thread(self._pairings.prove, pairing_id, message.proof)
        finally:
            self._bell.ring(pairing_id)
        return web.json_response(to_json(PairingSealed(sealed=sealed)))

    async def _type(self, request: web.Request) -> web.Response:
        """An operator's: ends when the machine has proven that it shows the code, or is not going to."""
        typed = await read_message(request, CodeTyped, strict=True)
        code = Code.parse(typed.code)
        server = await asyncio.to_thread(self._servers.by_name, typed.tenant, typed.server)

        def grant() -> bytes:
            issued = self._enrolment.issue_token(typed.tenant, server.name, TOKEN_HOURS)
            made = PairingGrant(token=issued.token.text, server=server.name, now=self._now())
            return json.dumps(to_json(made)).encode()

        pairing = await asyncio.to_thread(self._pairings.type, code, grant)
        self._bell.ring(pairing.id)

        async def ended() -> bool | None:
            return None if pairing.waits else True

        await self._bell.news(ended, MACHINE_ANSWERS_SECONDS, pairing.id)
        await asyncio.to_thread(self._note, pairing, typed)
        return web.json_response({"server": server.name, "machine": pairing.machine})

    def _note(self, pairing: Pairing, typed: CodeTyped) -> None:
        """Writes down how it ended. Raises PairingError unless they are paired."""
        paired = pairing.state is PairingState.PAIRED
        words = "paired" if paired else "refused"
        detail = f"{words} as repair target of {typed.server}: {pairing.machine}, at {pairing.address}"
        self._audit.add(typed.tenant, "operator", "pair", detail)
        if paired:
            return
        if pairing.state is PairingState.REFUSED:
            raise PairingError("this is not what the machine shows: it was mistyped, or somebody is in between")
        self._pairings.refuse(pairing.id)
        raise PairingError("the machine does not answer any more", "look at its screen; it shows another code soon")
