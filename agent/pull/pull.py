"""Pull one volume of a point onto a disk: say what the disk holds, get what differs, write, read back, prove the root.

Whatever is interrupted is simply done again: what was written before no longer differs.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from agent.client import ServiceClient
from agent.inventory import machine_id
from agent.pieces import hash_piece, pieces_with_data, share_out
from agent.protocol.digests import DigestMap
from agent.protocol.errors import NotFound, TargetError
from agent.protocol.frames import Kind, decode, encode_offer
from agent.protocol.grid import BlockGrid, consecutive
from agent.protocol.messages import Point, PulledReport
from agent.volumes.target import TargetVolume

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class PullResult:
    """The JSON of `understudy-agent pull`. `received_bytes` is what the socket saw, both ways."""

    point: str
    volume: int
    onto: str
    seconds: float
    read_bytes: int
    written_bytes: int
    received_bytes: int
    root: str


async def find_point(client: ServiceClient, point_id: str) -> Point:
    """A point of this server by id, or `latest`. Raises NotFound."""
    return await client.ask(f"/agent/v1/points/{point_id}", None, Point, method="GET")


async def pull(
    client: ServiceClient,
    point: Point,
    volume: int,
    onto: str,
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> PullResult:
    """Make the disk or file `onto` equal to one volume of `point`. Raises NotFound, TargetError, TransportError."""
    if not 0 <= volume < len(point.volumes):
        raise NotFound(f"point {point.id} has no volume {volume}", f"it has volumes 0 to {len(point.volumes) - 1}")
    wanted = point.volumes[volume]
    began = time.monotonic()
    with (
        TargetVolume.open(onto, wanted.size_bytes) as target,
        ThreadPoolExecutor((os.cpu_count() or 2) + 2, "pull") as threads,
    ):
        grid = BlockGrid(wanted.size_bytes, wanted.block_bytes)
        work = _Pull(client, point, volume, target, grid, threads, on_progress)
        await work.run()
        root = work.found.root().hex()
        if root != wanted.root:
            raise TargetError(
                f"{onto} was written, but what is read back from it does not have the root of {point.id}",
                "do not start a machine from it; check the disk (dmesg, smartctl), then pull again",
            )
        await client.ask(
            f"/agent/v1/points/{point.id}/volumes/{volume}/pulled",
            PulledReport(root=root, machine_id=machine_id(), received_bytes=client.wire.received_bytes),
            Point,
        )
    return PullResult(
        point=point.id,
        volume=volume,
        onto=onto,
        seconds=round(time.monotonic() - began, 3),
        read_bytes=work.read_bytes,
        written_bytes=work.written_bytes,
        received_bytes=client.wire.total_bytes,
        root=root,
    )


class _Pull:
    """`found` describes what was read from the target: before writing, and again after, where it was written."""

    def __init__(
        self,
        client: ServiceClient,
        point: Point,
        volume: int,
        target: TargetVolume,
        grid: BlockGrid,
        threads: Executor,
        on_progress: Callable[[int, int], None],
    ) -> None:
        self.found = DigestMap(grid)
        self.read_bytes = 0
        self.written_bytes = 0
        self._client = client
        self._path = f"/agent/v1/points/{point.id}/volumes/{volume}/diff"
        self._target = target
        self._grid = grid
        self._threads = threads
        self._on_progress = on_progress
        self._done_bytes = 0
        self._written: list[range] = []

    async def run(self) -> None:
        await share_out(pieces_with_data(self._grid, self._target.data_ranges()), self._grid, self._fetch_piece)
        await self._in_thread(self._target.flush)
        await self._in_thread(self._target.drop_cache)
        await share_out([(blocks, True) for blocks in self._written], self._grid, self._read_piece)

    async def _in_thread(self, call: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments)

    async def _fetch_piece(self, blocks: range, has_data: bool, buffer: memoryview) -> None:
        await self._read_piece(blocks, has_data, buffer)
        body = await self._client.call("POST", self._path, encode_offer(list(blocks), self.found.run(blocks)))
        if body:
            await self._in_thread(self._write, body)
            self._written.append(blocks)
        self._done_bytes += self._grid.span(blocks)[1]
        self._on_progress(self._done_bytes, self._grid.size_bytes)

    async def _read_piece(self, blocks: range, has_data: bool, buffer: memoryview) -> None:
        if has_data:
            self.found.set_run(blocks, await self._in_thread(self._read_and_hash, blocks, buffer))

    def _read_and_hash(self, blocks: range, buffer: memoryview) -> bytes:
        offset, length = self._grid.span(blocks)
        self._target.read_into(buffer[:length], offset)
        self.read_bytes += length
        return hash_piece(self._grid, buffer[:length])

    def _write(self, body: bytes) -> None:
        """Write what the service sent, each block checked before. Raises BadFrame, DigestMismatch, TargetError."""
        for frame in decode(body):
            frame.check_against(self._grid)
            if frame.kind is Kind.ZEROS:
                for start, stop in consecutive(frame.indices):
                    span = self._grid.span(range(frame.indices[start], frame.indices[stop - 1] + 1))
                    self._target.zero(*span)
                    self.written_bytes += span[1]
                continue
            payload = frame.verified(self._grid)
            size = self._grid.block_bytes
            for start, stop in consecutive(frame.indices):
                self._target.write(self._grid.offset(frame.indices[start]), payload[start * size : stop * size])
            self.written_bytes += len(payload)
