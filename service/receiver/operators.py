"""What operators ask of points over HTTP: read one back and prove it, and hand out its blocks for an export."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from datetime import UTC, datetime
from typing import Any, Protocol

from aiohttp import web

from agent.protocol.digests import DIGEST_BYTES
from agent.protocol.errors import InternalError, StorageError, UnderstudyError, UsageError
from agent.protocol.frames import encode_offer
from agent.protocol.grid import BlockGrid
from agent.protocol.messages import to_json
from service.receiver.http import volume_of
from service.receiver.manifest import Manifest
from service.receiver.pull import PointReader
from service.receiver.receiver import Receiver

MAX_EXPORT_BLOCKS = 1024
_PROGRESS_SECONDS = 0.5

log = logging.getLogger(__name__)


class VerifiedRows(Protocol):
    """The rows about points, as far as operators' questions need them."""

    def get(self, point_id: str, tenant: str | None = None) -> Manifest:
        """Raises NotFound, also for another tenant's."""
        ...

    def mark_verified(self, point_id: str, verified_at: str) -> None: ...


class OperatorHttp:
    """Handlers under /api/v1/points; whoever calls has been let in by the API's own check, which says the tenant."""

    def __init__(
        self,
        receiver: Receiver,
        reader: PointReader,
        rows: VerifiedRows,
        threads: Executor,
        tenant_of: Callable[[web.Request], str | None],
    ) -> None:
        self._receiver = receiver
        self._reader = reader
        self._rows = rows
        self._threads = threads
        self._tenant_of = tenant_of

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/api/v1/points/{point}/verify", self._verify),
            web.get("/api/v1/points/{point}/volumes/{volume}/blocks", self._blocks),
        ]

    async def _verify(self, request: web.Request) -> web.StreamResponse:
        """Lines of JSON: {"read_bytes", "size_bytes"} while it goes on, at last {"point"} or {"error"}."""
        loop = asyncio.get_running_loop()
        tenant = self._tenant_of(request)
        listed = await loop.run_in_executor(self._threads, self._rows.get, request.match_info["point"], tenant)
        read_bytes = 0

        def verify() -> Manifest:
            def progress(done: int) -> None:
                nonlocal read_bytes
                read_bytes = done

            manifest = self._receiver.archive.manifest(listed.server_id, listed.point.id)
            self._receiver.archive.verify(manifest, progress)
            try:
                self._rows.mark_verified(listed.point.id, _now())
            except StorageError as error:  # a database that cannot be written (a full disk) is no fault of the point
                log.warning("that point %s was verified is not written down: %s", listed.point.id, error)
            return self._rows.get(listed.point.id)

        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        work = loop.run_in_executor(self._threads, verify)
        while not work.done():
            await asyncio.wait([work], timeout=_PROGRESS_SECONDS)
            if not work.done():
                await _line(response, {"read_bytes": read_bytes, "size_bytes": listed.point.size_bytes})
        try:
            await _line(response, {"point": to_json((await work).point)})
        except UnderstudyError as error:
            await _line(response, error.to_json())
        except Exception as error:
            await _line(response, InternalError(f"point {listed.point.id} could not be verified").to_json())
            raise error from None
        return response

    async def _blocks(self, request: web.Request) -> web.Response:
        """The data of blocks [start, start + count) as frames; blocks of zeros are left out."""
        loop = asyncio.get_running_loop()
        tenant, volume = self._tenant_of(request), volume_of(request)
        start, count = _number(request, "start"), _number(request, "count")
        if not 0 < count <= MAX_EXPORT_BLOCKS:
            raise UsageError(f"{count} blocks were asked for; 1 to {MAX_EXPORT_BLOCKS} are possible at once")

        def read() -> bytes:
            listed = self._rows.get(request.match_info["point"], tenant)
            manifest = self._receiver.archive.manifest(listed.server_id, listed.point.id)
            described = manifest.volume(volume)
            blocks = range(start, min(start + count, BlockGrid(described.size_bytes, described.block_bytes).count))
            # who holds nothing but zeros lacks exactly the data
            return self._reader.differing(
                manifest, volume, encode_offer(list(blocks), bytes(len(blocks) * DIGEST_BYTES))
            )

        return web.Response(
            body=await loop.run_in_executor(self._threads, read), content_type="application/octet-stream"
        )


async def _line(response: web.StreamResponse, document: dict[str, Any]) -> None:
    await response.write(json.dumps(document).encode() + b"\n")


def _number(request: web.Request, name: str) -> int:
    try:
        return int(request.query[name])
    except (KeyError, ValueError):
        raise UsageError(f"the query needs a whole number {name!r}") from None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
