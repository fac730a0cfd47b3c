"""Plans over HTTP, beyond their texts: would they work now, and what may their runs cost."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass
from typing import Any

from aiohttp import web

from agent.protocol.errors import UsageError
from recovery.plans import Caps
from service.api.operators import tenant_of
from service.planning import PlanBook
from service.receiver.http import read_message
from service.store.audit import AuditStore
from service.store.plans import PlanStore
from service.store.rows import PlanCheck


@dataclass(frozen=True, slots=True, kw_only=True)
class CapsWanted:
    """Null: no limit."""

    instances: int | None = None
    price_per_hour: float | None = None


class PlanHttp:
    """Handlers under /api/v1/plans/NAME/check, /api/v1/checks and /api/v1/caps."""

    def __init__(self, book: PlanBook, plans: PlanStore, audit: AuditStore) -> None:
        self._book = book
        self._plans = plans
        self._audit = audit

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/api/v1/plans/{name}/check", self._check),
            web.delete("/api/v1/plans/{name}", self._remove),
            web.get("/api/v1/checks", self._checks),
            web.get("/api/v1/caps", self._caps),
            web.put("/api/v1/caps", self._put_caps),
        ]

    async def _check(self, request: web.Request) -> web.Response:
        """The answer as it is now, which is kept, too."""
        tenant, name = tenant_of(request), request.match_info["name"]

        def check() -> PlanCheck:
            found = self._book.check(tenant, name)
            self._plans.put_checks(tenant, [found])
            return found

        return web.json_response(asdict(await asyncio.to_thread(check)))

    async def _checks(self, request: web.Request) -> web.Response:
        """The newest answer about each plan, and each server that is in none."""
        found = await asyncio.to_thread(self._plans.checks, tenant_of(request))
        return web.json_response([asdict(check) for check in found])

    async def _remove(self, request: web.Request) -> web.Response:
        tenant, name = tenant_of(request), request.match_info["name"]

        def remove() -> None:
            self._plans.remove(tenant, name)
            self._audit.add(tenant, "operator", "plan.remove", name)

        await asyncio.to_thread(remove)
        return web.json_response({})

    async def _caps(self, request: web.Request) -> web.Response:
        return web.json_response(asdict(await asyncio.to_thread(self._plans.caps, tenant_of(request))))

    async def _put_caps(self, request: web.Request) -> web.Response:
        tenant = tenant_of(request)
        wanted = await read_message(request, CapsWanted, strict=True)
        if (wanted.instances is not None and wanted.instances < 0) or (
            wanted.price_per_hour is not None and wanted.price_per_hour < 0
        ):
            raise UsageError("a cap is not negative", "use 0 to stop every run, or none for no limit")

        def put() -> dict[str, Any]:
            caps = Caps(instances=wanted.instances, price_per_hour=wanted.price_per_hour)
            self._plans.put_caps(tenant, caps)
            self._audit.add(tenant, "operator", "caps", f"instances {caps.instances}, an hour {caps.price_per_hour}")
            return asdict(caps)

        return web.json_response(await asyncio.to_thread(put))
