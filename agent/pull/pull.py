"""Pull one volume of a point onto a disk: say what the disk holds, get what differs, write, read back, prove the root.

What was written is read back from the medium at once, round every cache, while the next blocks are on their way.

Whatever is interrupted is simply done again: what was written before no longer differs.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from agent.client import ServiceClient
from agent.inventory import machine_id
from agent.pieces import hash_piece, piece_blocks, share_out
from agent.protocol.digests import DigestMap
from agent.protocol.errors import BadFrame, NotFound, TargetError
from agent.protocol.frames import Kind, decode, encode_offer
from agent.protocol.grid import BlockGrid, consecutive
from agent.protocol.messages import Point, PulledReport
from agent.volumes.target import TargetVolume

T = TypeVar("T")

OFFER_BLOCKS = 1024
"""What is asked about at once, while nothing differs; what differs comes in smaller answers."""


# bytes a second that each line brings -> zstd level. On loopback, stored blocks took a pull of 4 GiB from 14.3 to
# 10.4 s of processor time (both sides, one run each); where the line becomes the bottleneck is a choice, well above
# 1 Gbit/s.
_LEVELS = ((60e6, 0), (5e6, 1), (0.0, 3))


def packing_level(line_rate: float | None) -> int:
    """How hard the service shall pack what it sends over lines of `line_rate` bytes a second each; 0: not at all."""
    return 1 if line_rate is None else next(level for least, level in _LEVELS if line_rate >= least)


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

    async def run(self) -> None:
        async def worker(shared: Iterator[range], buffer: memoryview) -> None:
            for blocks in shared:
                await self._bring(blocks, buffer)

        await share_out(self._grid.pieces(OFFER_BLOCKS), worker)
        await self._in_thread(self._target.flush)

    async def _in_thread(self, call: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments)

    async def _bring(self, blocks: range, buffer: memoryview) -> None:
        """Make a run of blocks equal to the point's: say what is there, write what comes, until nothing more does."""
        await self._in_thread(self._look, blocks, buffer)
        while blocks:
            offer = encode_offer(blocks, self.found.run(blocks))
            path = f"{self._path}?level={packing_level(self._client.receive_rate)}"
            answer = await self._client.call("POST", path, [offer])
            done_until = await self._in_thread(self._take, answer, blocks) if answer else blocks.stop
            self._done_bytes += self._grid.span(range(blocks.start, done_until))[1]
            self._on_progress(self._done_bytes, self._grid.size_bytes)
            blocks = range(done_until, blocks.stop)

    def _look(self, blocks: range, buffer: memoryview) -> None:
        """Hash what the target holds before anything is written."""
        offset, length = self._grid.span(blocks)
        for part in self._grid.covering(self._target.data_ranges(offset, length), piece_blocks(self._grid)):
            offset, length = self._grid.span(part)
            self._target.read_into(buffer[:length], offset)
            self.read_bytes += length
            self.found.set_run(part, hash_piece(self._grid, buffer[:length]))

    def _take(self, answer: bytes, blocks: range) -> int:
        """Write what the service sent of `blocks`, each block checked before, and read it back. Returns the block up
        to which all are answered. Raises BadFrame, DigestMismatch, TargetError."""
        until = blocks.stop
        for frame in decode(answer):
            frame.check_against(self._grid)
            if frame.indices and not blocks.start <= frame.indices[0] <= frame.indices[-1] < blocks.stop:
                raise BadFrame("the service sent blocks that were not asked for")
            if frame.kind is Kind.UNTIL:
                until = frame.indices[0]
                if until == blocks.start:
                    raise BadFrame("the service answers nothing")
                continue
            content = frame.verified(self._grid) if frame.kind is Kind.BLOCKS else None
            for start, stop in consecutive(frame.indices):
                run = range(frame.indices[start], frame.indices[stop - 1] + 1)
                offset, length = self._grid.span(run)
                if content is None:
                    self._target.zero(offset, length)
                else:
                    at = start * self._grid.block_bytes
                    self._target.write(offset, content[at : at + length])
                self.written_bytes += length
                self.found.set_run(run, hash_piece(self._grid, self._target.read_back(offset, length)))
        return until
