"""What operators ask for: servers, points, tokens, commands. Everything belongs to `?tenant=` (default: default)."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from aiohttp import web

from agent.protocol.errors import NotFound, UsageError
from recovery.plans import default_plan, dump_plan
from service.api.views import damaged_to_json, iso_time, point_to_json, server_proof_to_json, server_to_json, why_deaf
from service.bell import Bell
from service.identity.enrolment import TOKEN_HOURS, Enrolment
from service.planning import PlanBook
from service.receiver.http import read_message
from service.store.audit import AuditStore
from service.store.commands import CommandStore
from service.store.plans import PlanStore
from service.store.points import PointStore
from service.store.proofs import ProofStore
from service.store.rows import DEFAULT_TENANT, CommandProgress, CommandRow
from service.store.servers import ServerStore

MAX_WAIT_SECONDS = 30.0
MAX_MOST = 100_000
DEFAULT_AUDIT = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenWanted:
    tenant: str = DEFAULT_TENANT
    name: str | None = None
    expires_hours: float = TOKEN_HOURS


@dataclass(frozen=True, slots=True, kw_only=True)
class PointWanted:
    label: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanText:
    """`draft`: also with servers that nobody protects yet."""

    text: str
    draft: bool = False


class OperatorHttp:
    """Handlers under /api/v1, but for runs. `public_url` is where agents reach the service."""

    def __init__(
        self,
        enrolment: Enrolment,
        servers: ServerStore,
        points: PointStore,
        commands: CommandStore,
        plans: PlanStore,
        book: PlanBook,
        proofs: ProofStore,
        audit: AuditStore,
        bell: Bell,
        public_url: str,
        is_pushing: Callable[[str], bool],
        why_held: Callable[[str], str | None] = lambda _: None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._enrolment = enrolment
        self._servers = servers
        self._points = points
        self._commands = commands
        self._plans = plans
        self._book = book
        self._proofs = proofs
        self._audit = audit
        self._bell = bell
        self._public_url = public_url
        self._is_pushing = is_pushing
        self._why_held = why_held
        self._now = now

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/api/v1/enroll-tokens", self._enroll_token),
            web.get("/api/v1/servers", self._list_servers),
            web.get("/api/v1/servers/{name}", self._server),
            web.get("/api/v1/servers/{name}/points", self._server_points),
            web.post("/api/v1/servers/{name}/take", self._take),
            web.get("/api/v1/points/{point}", self._point),
            web.get("/api/v1/commands/{command}", self._command),
            web.get("/api/v1/plans", self._list_plans),
            web.get("/api/v1/plans/{name}", self._plan),
            web.put("/api/v1/plans/{name}", self._put_plan),
            web.get("/api/v1/audit", self._list_audit),
        ]

    async def _enroll_token(self, request: web.Request) -> web.Response:
        wanted = await read_message(request, TokenWanted, strict=True)

        def issue() -> dict[str, Any]:
            issued = self._enrolment.issue_token(wanted.tenant, wanted.name, wanted.expires_hours)
            self._audit.add(wanted.tenant, "operator", "enroll-token", f"for {wanted.name or 'any server'}")
            return {
                "token": issued.token.text,
                "ca_fingerprint": issued.token.ca_fingerprint,
                "expires_at": iso_time(issued.expires_at),
                "command": f"understudy-agent enroll {self._public_url} {issued.token.text}",
            }

        return web.json_response(await asyncio.to_thread(issue))

    async def _list_servers(self, request: web.Request) -> web.Response:
        tenant = tenant_of(request)

        def look() -> list[dict[str, Any]]:
            newest = self._points.newest(tenant)
            last, bootable = self._proofs.of_servers(tenant), self._proofs.bootable(tenant)
            damaged: list[dict[str, Any]] = []
            rows = self._servers.all(tenant, lambda *about: damaged.append(damaged_to_json(*about)))
            sound = [
                server_to_json(row, newest.get(row.id), self._now())
                | server_proof_to_json(last.get(row.id), bootable.get(row.id))
                for row in rows
            ]
            return sound + damaged

        return web.json_response(await asyncio.to_thread(look))

    async def _server(self, request: web.Request) -> web.Response:
        tenant, name = tenant_of(request), request.match_info["name"]

        def look() -> dict[str, Any]:
            row = self._servers.by_name(tenant, name)
            newest = self._points.newest(tenant).get(row.id)
            last, bootable = self._proofs.of_servers(tenant).get(row.id), self._proofs.bootable(tenant).get(row.id)
            proof = server_proof_to_json(last, bootable)
            return server_to_json(row, newest, self._now()) | proof | {"inventory": row.inventory}

        return web.json_response(await asyncio.to_thread(look))

    async def _server_points(self, request: web.Request) -> web.Response:
        tenant, name = tenant_of(request), request.match_info["name"]

        def look() -> list[dict[str, Any]]:
            server_id = self._servers.by_name(tenant, name).id
            proven = self._proofs.of_points(server_id)
            return [
                point_to_json(point, proven.get(point.id), self._why_held(point.id))
                for point in self._points.newest_first(server_id)
            ]

        return web.json_response(await asyncio.to_thread(look))

    async def _point(self, request: web.Request) -> web.Response:
        tenant, point_id = tenant_of(request), request.match_info["point"]

        def look() -> dict[str, Any]:
            found = self._points.get(point_id, tenant)
            proof = self._proofs.of_points(found.server_id).get(point_id)
            return point_to_json(found.point, proof, self._why_held(point_id))

        return web.json_response(await asyncio.to_thread(look))

    async def _take(self, request: web.Request) -> web.Response:
        tenant, name = tenant_of(request), request.match_info["name"]
        wanted = await read_message(request, PointWanted, strict=True)

        def ask() -> dict[str, Any]:
            row = self._servers.by_name(tenant, name)
            deaf = why_deaf(row, pushing=self._is_pushing(row.id), now=self._now())
            if deaf is not None:
                raise deaf
            command_id = f"take-{secrets.token_hex(6)}"
            self._commands.add(command_id, tenant, row.id, "push", wanted.label)
            self._audit.add(tenant, "operator", "take", f"{name}: {command_id}")
            return _command_json(self._commands.get(command_id))

        return web.json_response(await asyncio.to_thread(ask), status=202)

    async def _command(self, request: web.Request) -> web.Response:
        """As soon as it is done, or as it stands after `?wait_seconds=`; `deaf`: why it will not be heard, an error."""
        tenant, command_id = tenant_of(request), request.match_info["command"]

        def get() -> CommandRow:
            row = self._commands.get(command_id)
            if row.tenant != tenant:
                raise NotFound(f"there is no command {command_id}")
            return row

        def done() -> CommandRow | None:
            row = get()
            return row if row.state is CommandProgress.DONE else None

        def look() -> dict[str, Any]:
            row = get()
            deaf = None
            if row.state is not CommandProgress.DONE:
                server = self._servers.get(row.server_id)
                deaf = why_deaf(server, pushing=self._is_pushing(server.id), now=self._now())
            return _command_json(row) | {"deaf": deaf.to_json() if deaf else None}

        await self._bell.news(lambda: asyncio.to_thread(done), wait_of(request))
        return web.json_response(await asyncio.to_thread(look))

    async def _list_plans(self, request: web.Request) -> web.Response:
        return web.json_response(await asyncio.to_thread(self._plans.names, tenant_of(request)))

    async def _plan(self, request: web.Request) -> web.Response:
        tenant, name = tenant_of(request), request.match_info["name"]

        def look() -> str:
            text = self._plans.find(tenant, name)
            if text is None and name in (servers := self._book.estate(tenant).servers):
                return dump_plan(default_plan(name, windows=servers[name].windows))
            return text or self._plans.get(tenant, name)

        return web.json_response({"name": name, "text": await asyncio.to_thread(look)})

    async def _list_audit(self, request: web.Request) -> web.Response:
        """Who did what, newest first: the newest `?most=` (100 without it)."""
        tenant, most = tenant_of(request), most_of(request, DEFAULT_AUDIT)
        found = await asyncio.to_thread(self._audit.newest_first, tenant, most)
        shown = [
            {"at": iso_time(entry.at), "who": entry.who, "action": entry.action, "detail": entry.detail}
            for entry in found
        ]
        return web.json_response(shown)

    async def _put_plan(self, request: web.Request) -> web.Response:
        tenant, name = tenant_of(request), request.match_info["name"]
        wanted = await read_message(request, PlanText, strict=True)

        def put() -> dict[str, Any]:
            plan, missing = self._book.apply(tenant, name, wanted.text, draft=wanted.draft)
            self._audit.add(tenant, "operator", "plan.apply", name)
            return {"name": name, "servers": [server.name for server in plan.servers], "missing": missing}

        return web.json_response(await asyncio.to_thread(put))


def most_of(request: web.Request, default: int) -> int:
    """`?most=`. Raises UsageError."""
    most = request.query.get("most", str(default))
    if not most.isdecimal():
        raise UsageError(f"most is {most[:100]!r}, and should be a whole number")
    return min(int(most), MAX_MOST)


def tenant_of(request: web.Request) -> str:
    return request.query.get("tenant", DEFAULT_TENANT)


def wait_of(request: web.Request) -> float:
    """`?wait_seconds=`, 0 without it. Raises UsageError."""
    text = request.query.get("wait_seconds", "0")
    try:
        return min(max(float(text), 0.0), MAX_WAIT_SECONDS)
    except ValueError:
        raise UsageError(f"wait_seconds is {text!r}, and should be a number") from None


def _command_json(row: CommandRow) -> dict[str, Any]:
    return {name: value for name, value in asdict(row).items() if name not in ("tenant", "created_at", "sent_at")}
