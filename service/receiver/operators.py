"""What operators ask of points over HTTP: their blocks, for an export."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from typing import Protocol

from aiohttp import web

from agent.protocol.digests import DIGEST_BYTES
from agent.protocol.errors import UsageError
from agent.protocol.frames import encode_offer
from agent.protocol.grid import BlockGrid
from service.receiver.http import answered, volume_of
from service.receiver.manifest import Manifest
from service.receiver.pull import Buffer, PointReader
from service.receiver.receiver import Receiver

MAX_EXPORT_BLOCKS = 1024
MAX_EXPORT_BYTES = 128 << 20


class PointRows(Protocol):
    """The rows about points, as far as operators' questions need them."""

    def get(self, point_id: str, tenant: str | None = None) -> Manifest:
        """Raises NotFound, also for another tenant's."""
        ...


class OperatorHttp:
    """Handlers under /api/v1/points; whoever calls has been let in by the API's own check, which says the tenant."""

    def __init__(
        self,
        receiver: Receiver,
        reader: PointReader,
        rows: PointRows,
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
            web.get("/api/v1/points/{point}/volumes/{volume}/blocks", self._blocks),
        ]

    async def _blocks(self, request: web.Request) -> web.StreamResponse:
        """The data of blocks [start, start + count) as frames; blocks of zeros are left out."""
        loop = asyncio.get_running_loop()
        tenant, volume = self._tenant_of(request), volume_of(request)
        start, count = _number(request, "start"), _number(request, "count")
        if not 0 < count <= MAX_EXPORT_BLOCKS:
            raise UsageError(f"{count} blocks were asked for; 1 to {MAX_EXPORT_BLOCKS} are possible at once")

        def read() -> list[Buffer]:
            listed = self._rows.get(request.match_info["point"], tenant)
            manifest = self._receiver.archive.manifest(listed.server_id, listed.point.id)
            described = manifest.volume(volume)
            grid = BlockGrid(described.size_bytes, described.block_bytes)
            if count * grid.block_bytes > MAX_EXPORT_BYTES:
                raise UsageError(f"{count} blocks of {grid.block_bytes} bytes are too many at once", "ask for fewer")
            return list(self._data(manifest, volume, range(start, min(start + count, grid.count))))

        return await answered(request, await loop.run_in_executor(self._threads, read))

    def _data(self, manifest: Manifest, volume: int, blocks: range) -> Iterator[Buffer]:
        """Frames of all data in these blocks, from as many answers as that takes."""
        while blocks:
            # who holds nothing but zeros lacks exactly the data
            offer = encode_offer(list(blocks), bytes(len(blocks) * DIGEST_BYTES))
            answer = self._reader.differing(manifest, volume, offer)
            yield from answer.frames
            blocks = range(0) if answer.until is None else range(answer.until, blocks.stop)


def _number(request: web.Request, name: str) -> int:
    try:
        return int(request.query[name])
    except (KeyError, ValueError):
        raise UsageError(f"the query needs a whole number {name!r}") from None
