"""Runs over HTTP: begin, watch, end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from agent.protocol.errors import UsageError
from recovery.drills.reaper import DEFAULT_TTL_SECONDS
from recovery.planner import new_seed
from recovery.runs import Run, RunKind
from service.api.operators import most_of, tenant_of, wait_of
from service.bell import Bell
from service.desk import RunDesk
from service.planning import PlanBook
from service.receiver.http import read_message

MAX_TTL_SECONDS = 30 * 86_400.0
DEFAULT_MOST = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class RunWanted:
    """`target` (a plan or a server) and `point` (none: as the plan says) for a drill or a failover, `over_cap`
    says why it may exceed a cap, `ttl_seconds` after how long a drill is ended by itself; `declare_dead`: servers whose
    sources are dead (`*`: all), the others are stopped by their agents first; `copies` for a clone, and
    `host_names` for what these are called, like `test-{copy}` or `{server}-clone-{copy}`; `without`: servers
    of the plan that are left out; `run` (and
    `server`, `grace_seconds`, `hold`) for a failback. `seed`: what a dry run answered, so that the run has the names
    that it showed."""

    kind: str
    target: str | None = None
    point: str | None = None
    ttl_seconds: float = DEFAULT_TTL_SECONDS
    over_cap: str | None = None
    run: str | None = None
    server: str | None = None
    declare_dead: list[str] = field(default_factory=list)
    copies: int = 1
    host_names: str | None = None
    without: list[str] = field(default_factory=list)
    grace_seconds: int = 0
    hold: bool = False
    seed: str | None = None
    dry_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryWanted:
    """`go_on`: what failed is passed over; `declare_dead`: servers whose sources could not be stopped, and are dead."""

    go_on: bool = False
    declare_dead: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class EndWanted:
    force: bool = False


class RunHttp:
    """Handlers under /api/v1/runs. `bell` rings when a run changes."""

    def __init__(self, book: PlanBook, desk: RunDesk, bell: Bell) -> None:
        self._book = book
        self._desk = desk
        self._bell = bell

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/api/v1/runs", self._list),
            web.post("/api/v1/runs", self._begin),
            web.get("/api/v1/runs/{run}", self._watch),
            web.post("/api/v1/runs/{run}/end", self._end),
            web.post("/api/v1/runs/{run}/retry", self._retry),
            web.post("/api/v1/runs/{run}/commit", self._commit),
            web.post("/api/v1/runs/{run}/rollback", self._roll_back),
        ]

    async def _list(self, request: web.Request) -> web.Response:
        """The newest `?most=` (100 without it)."""
        tenant, most = tenant_of(request), most_of(request, DEFAULT_MOST)
        return web.json_response(await asyncio.to_thread(lambda: self._desk.to_json(self._desk.newest(tenant, most))))

    async def _begin(self, request: web.Request) -> web.Response:
        tenant = tenant_of(request)
        wanted = await read_message(request, RunWanted, strict=True)

        _refuse_blank(wanted)

        def begin() -> dict[str, Any]:
            if wanted.kind == RunKind.FAILBACK:
                failover, grace = _given(wanted.run, "run"), _grace(wanted.grace_seconds)
                seed = wanted.seed or new_seed()
                if wanted.dry_run:
                    run = self._desk.plan_failback(tenant, failover, wanted.server, grace, hold=wanted.hold, seed=seed)
                    return self._desk.planned_to_json(run) | {"seed": seed}
                run = self._desk.fail_back(tenant, failover, wanted.server, grace, hold=wanted.hold, seed=seed)
                return self._desk.to_json([run])[0]
            if wanted.kind not in tuple(RunKind):
                raise UsageError(f"kind is {wanted.kind!r}", f"use one of {', '.join(RunKind)}")
            planned = self._book.plan(
                tenant,
                RunKind(wanted.kind),
                _given(wanted.target, "target"),
                wanted.point,
                dead=wanted.declare_dead,
                copies=wanted.copies,
                host_names=wanted.host_names,
                left_out=wanted.without,
                seed=wanted.seed,
            )
            if planned.run.kind is RunKind.DRILL:
                planned.run.expires_at = planned.run.created_at + _ttl(wanted.ttl_seconds)
            if wanted.dry_run:
                return self._desk.dry_run_to_json(planned)
            return self._desk.to_json([self._desk.start(planned, wanted.over_cap)])[0]

        return web.json_response(await asyncio.to_thread(begin), status=200 if wanted.dry_run else 201)

    async def _watch(self, request: web.Request) -> web.Response:
        """The run; with `?after_version=` as soon as it is newer than that, or after `?wait_seconds=`."""
        tenant, run_id = tenant_of(request), request.match_info["run"]
        after = request.query.get("after_version", "-1")
        if not after.lstrip("-").isdecimal():
            raise UsageError(f"after_version is {after!r}, and should be a whole number")

        def newer() -> Run | None:
            # a run of hundreds of steps changes often, and is read whole only when it has
            newer_than_known = self._desk.version(tenant, run_id) > int(after)
            return self._desk.get(tenant, run_id) if newer_than_known else None

        run = await self._bell.news(lambda: asyncio.to_thread(newer), wait_of(request))
        return await self._answer(lambda: run or self._desk.get(tenant, run_id))

    async def _end(self, request: web.Request) -> web.Response:
        tenant, run_id = tenant_of(request), request.match_info["run"]
        wanted = await read_message(request, EndWanted, strict=True)
        return await self._answer(lambda: self._desk.end(tenant, run_id, force=wanted.force))

    async def _retry(self, request: web.Request) -> web.Response:
        tenant, run_id = tenant_of(request), request.match_info["run"]
        wanted = await read_message(request, RetryWanted, strict=True)
        return await self._answer(
            lambda: self._desk.retry(tenant, run_id, go_on=wanted.go_on, dead=wanted.declare_dead)
        )

    async def _commit(self, request: web.Request) -> web.Response:
        tenant, run_id = tenant_of(request), request.match_info["run"]
        return await self._answer(lambda: self._desk.commit(tenant, run_id))

    async def _roll_back(self, request: web.Request) -> web.Response:
        tenant, run_id = tenant_of(request), request.match_info["run"]
        return await self._answer(lambda: self._desk.roll_back(tenant, run_id))

    async def _answer(self, find: Callable[[], Run]) -> web.Response:
        return web.json_response(await asyncio.to_thread(lambda: self._desk.to_json([find()])[0]))


def _refuse_blank(wanted: RunWanted) -> None:
    """What a script's empty variable gave: it must not become the newest point, or a reason that says nothing."""
    for name in ("point", "over_cap", "server", "host_names"):
        value = getattr(wanted, name)
        if value is not None and not value.strip():
            raise UsageError(f"{name} is empty", "say which, or leave it out")


def _grace(seconds: int) -> float:
    if not 0 <= seconds <= MAX_TTL_SECONDS:
        raise UsageError(f"a grace time of {seconds / 3600:g} h is not possible", "use up to 30 d, like --grace 2h")
    return float(seconds)


def _ttl(seconds: float) -> float:
    if not 0 < seconds <= MAX_TTL_SECONDS:
        raise UsageError(f"a time to live of {seconds / 3600:g} h is not possible", "use up to 30 d, like --ttl 2h")
    return seconds


def _given(value: str | None, name: str) -> str:
    if not value:
        raise UsageError(f"{name!r} is missing")
    return value
