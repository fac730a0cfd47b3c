"""Drills over HTTP: their schedule, how everybody stands, and the evidence that they leave."""

from __future__ import annotations

import asyncio
import mimetypes
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from recovery.drills.rotation import DrillSchedule, Window
from service.api.operators import tenant_of
from service.desk import RunDesk
from service.drills import DrillRounds
from service.evidence.keeper import PUBLIC_KEY, EvidenceKeeper
from service.receiver.http import read_message


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleWanted:
    """`every_seconds` null: no drill is begun but by people. `window` null: at any time of the day."""

    every_seconds: float | None = None
    window: str | None = None
    at_once: int = 1


class DrillHttp:
    """Handlers under /api/v1/drills and /api/v1/runs/RUN/evidence."""

    def __init__(self, rounds: DrillRounds, desk: RunDesk, keeper: EvidenceKeeper) -> None:
        self._rounds = rounds
        self._desk = desk
        self._keeper = keeper

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/api/v1/drills", self._standing),
            web.put("/api/v1/drills/schedule", self._schedule),
            web.get("/api/v1/runs/{run}/evidence", self._files),
            web.get("/api/v1/runs/{run}/evidence/{file}", self._file),
        ]

    async def _standing(self, request: web.Request) -> web.Response:
        return web.json_response(await asyncio.to_thread(self._rounds.standing, tenant_of(request)))

    async def _schedule(self, request: web.Request) -> web.Response:
        tenant = tenant_of(request)
        wanted = await read_message(request, ScheduleWanted, strict=True)

        def put() -> dict[str, Any]:
            schedule = None
            if wanted.every_seconds is not None:
                window = None if wanted.window is None else Window.parse(wanted.window)
                schedule = DrillSchedule(every_seconds=wanted.every_seconds, window=window, at_once=wanted.at_once)
            self._rounds.set_schedule(tenant, schedule)
            return self._rounds.standing(tenant)

        return web.json_response(await asyncio.to_thread(put))

    async def _files(self, request: web.Request) -> web.Response:
        """The names of a run's evidence: its signed JSON first, then its page, pictures, and the public key."""
        tenant, run_id = tenant_of(request), request.match_info["run"]
        files = await asyncio.to_thread(lambda: self._keeper.files(self._desk.get(tenant, run_id).id))
        return web.json_response({"run": run_id, "files": files})

    async def _file(self, request: web.Request) -> web.Response:
        tenant, run_id, name = tenant_of(request), request.match_info["run"], request.match_info["file"]
        content = await asyncio.to_thread(lambda: self._keeper.content(self._desk.get(tenant, run_id).id, name))
        kind = "application/x-pem-file" if name == PUBLIC_KEY else mimetypes.guess_type(name)[0]
        headers = {
            # the page has no script; what a guest wrote must not become one in somebody's console either
            "Content-Security-Policy": "default-src 'none'; img-src data:; style-src 'unsafe-inline'; sandbox",
            "X-Content-Type-Options": "nosniff",
        }
        return web.Response(body=content, content_type=kind or "application/octet-stream", headers=headers)
