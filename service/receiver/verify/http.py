"""Verification over HTTP, for operators: which points there are, and one of them read back, and healed if asked."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Executor
from typing import Any

from aiohttp import web

from agent.protocol.errors import Conflict, InternalError, UnderstudyError
from service.receiver.pull import PointReader
from service.receiver.receiver import Receiver
from service.receiver.verify.database import Checked, verify_database
from service.receiver.verify.findings import Verdict
from service.receiver.verify.readback import Stop
from service.receiver.verify.verifier import Verifier

_PROGRESS_SECONDS = 0.5

log = logging.getLogger(__name__)

Audit = Callable[[str, str], None]
"""(tenant, what was healed)"""


class VerifyHttp:
    """Handlers under /api/v1; whoever calls has been let in by the API's own check, which says the tenant."""

    def __init__(
        self,
        verifier: Verifier,
        database: Checked,
        threads: Executor,
        tenant_of: Callable[[web.Request], str],
        audit: Audit,
    ) -> None:
        self._verifier = verifier
        self._database = database
        self._threads = threads
        self._tenant_of = tenant_of
        self._audit = audit

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/api/v1/points", self._list),
            web.post("/api/v1/points/{point}/verify", self._verify),
            web.post("/api/v1/database/verify", self._verify_database),
        ]

    async def _list(self, request: web.Request) -> web.Response:
        """The ids of all points that rows or site know of, also those that cannot be used: {"point", "server_id"}."""
        known = await self._run(lambda: self._verifier.records.known(self._tenant_of(request)))
        return web.json_response([{"point": point_id, "server_id": server_id} for server_id, point_id in known])

    async def _verify_database(self, request: web.Request) -> web.Response:
        """{"verdict"} of the database's file; `?heal=1` makes its indexes anew."""
        tenant, heal = self._tenant_of(request), request.query.get("heal") == "1"

        def verify() -> Verdict:
            verdict = verify_database(self._database, heal=heal)
            self._tell(tenant, verdict)
            return verdict

        return web.json_response({"verdict": (await self._run(verify)).to_json()})

    def _tell(self, tenant: str, verdict: Verdict) -> None:
        for finding in verdict.findings:
            if finding.healed:
                self._audit(tenant, f"{finding}: {finding.healed}")

    async def _verify(self, request: web.Request) -> web.StreamResponse:
        """Lines of JSON: {"done_bytes", "size_bytes"} while it goes on, at last {"verdict"} or {"error"}.

        `?heal=1` heals. When whoever asked has left, it stops."""
        tenant, point_id = self._tenant_of(request), request.match_info["point"]
        heal = request.query.get("heal") == "1"
        server_id = await self._run(lambda: self._verifier.records.locate(point_id, tenant))
        stop, reached = Stop(), {"done_bytes": 0, "size_bytes": 0}

        def progress(done_bytes: int, size_bytes: int) -> None:
            reached.update(done_bytes=done_bytes, size_bytes=size_bytes)

        def verify() -> Verdict:
            verdict = self._verifier.verify(server_id, point_id, heal=heal, progress=progress, stop=stop)
            self._tell(tenant, verdict)
            return verdict

        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        work = asyncio.get_running_loop().run_in_executor(self._threads, verify)
        try:
            while not work.done():
                await asyncio.wait([work], timeout=_PROGRESS_SECONDS)
                if not work.done():
                    await _line(response, dict(reached))
            await _line(response, await _outcome(work, point_id))
        except ConnectionError:
            log.info("the verification of %s ends: whoever asked for it has left", point_id)
        finally:  # also when the service stops
            stop.set()
            await asyncio.wait([work])
        return response

    def _run(self, work: Callable[[], Any]) -> Any:
        return asyncio.get_running_loop().run_in_executor(self._threads, work)


def alone_with(receiver: Receiver, reader: PointReader) -> Callable[[str], contextlib.AbstractContextManager[None]]:
    """How a verifier gets a server's points for itself. Raises Conflict, VolumeBusy."""

    @contextlib.contextmanager
    def alone(server_id: str) -> Iterator[None]:
        with receiver.sessions.locked_soon(server_id):
            if receiver.sessions.current(server_id) is not None:
                raise Conflict("this server is being pushed", "heal again when the push has ended")
            reader.close()  # what nobody reads from at this moment
            receiver.dedupe.release(server_id)
            yield

    return alone


async def _outcome(work: Awaitable[Verdict], point_id: str) -> dict[str, Any]:
    try:
        return {"verdict": (await work).to_json()}
    except UnderstudyError as error:
        return error.to_json()
    except Exception:
        log.exception("point %s could not be verified", point_id)
        return InternalError(f"point {point_id} could not be verified").to_json()


async def _line(response: web.StreamResponse, document: dict[str, Any]) -> None:
    await response.write(json.dumps(document).encode() + b"\n")
