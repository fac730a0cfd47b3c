"""Pull one volume of a point onto a disk: say what the disk holds, get what differs, write, read back, prove the root.

Of a block that the disk has in another state only the pages that differ travel: the service names the block, we the
sums of its pages, and a block that does not come out right comes whole.

Whatever is interrupted is simply done again: what was written before no longer differs.
"""

from __future__ import annotations

import asyncio
import bisect
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from agent.client import ServiceClient
from agent.inventory import machine_id
from agent.pieces import share_out
from agent.protocol.brief import encode_brief
from agent.protocol.errors import BadFrame, NotFound, TargetError
from agent.protocol.frames import encode_offer
from agent.protocol.grid import BlockGrid
from agent.protocol.messages import Point, PulledReport
from agent.pull.onto import Onto, Taken
from agent.volumes.target import TargetVolume

T = TypeVar("T")

OFFER_BLOCKS = 1024
"""What is asked about at once, while nothing differs; what differs comes in smaller answers."""
SAMPLE_BLOCKS, SAMPLE_OF = 32, 8
"""Where so many times more blocks than a sample differ, it is a sample of which the pages are asked first."""
UNLIKE_SHARE = 7 / 8
"""Of a sample: if so much has nothing in common with what the disk holds, the rest comes whole as well."""


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
        work = Onto(target, BlockGrid(wanted.size_bytes, wanted.block_bytes))
        for brief in (True, False):  # one pass, but once in 2^64 blocks
            try:
                await _Pull(client, point, volume, work, threads, on_progress, brief=brief).run()
            except BadFrame:
                if brief:  # as a service says that knows whole offers only
                    continue
                raise
            await asyncio.get_running_loop().run_in_executor(threads, target.flush)
            root = work.found.root().hex()
            if root == wanted.root:
                break
        else:
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
    """`onto` holds what the service sent; it is known what that is worth once its root was compared."""

    def __init__(
        self,
        client: ServiceClient,
        point: Point,
        volume: int,
        onto: Onto,
        threads: Executor,
        on_progress: Callable[[int, int], None],
        *,
        brief: bool,
    ) -> None:
        """`brief`: offer the beginnings of digests, at first."""
        self._brief = brief
        self._client = client
        self._path = f"/agent/v1/points/{point.id}/volumes/{volume}"
        self._onto = onto
        self._threads = threads
        self._on_progress = on_progress
        self._done_bytes = 0

    async def run(self) -> None:
        async def worker(shared: Iterator[range], buffer: memoryview) -> None:
            for blocks in shared:
                await self._in_thread(self._onto.look, blocks, buffer)
                await self._bring(blocks, buffer)

        await share_out(self._onto.grid.pieces(OFFER_BLOCKS), worker)

    async def _bring(self, blocks: range, buffer: memoryview) -> None:
        """Make these blocks equal to the point's: say what is there, write what comes, until nothing more does."""
        alike = (await self._ask("diff", blocks, buffer, by_name=True)).alike
        step = len(alike) // SAMPLE_BLOCKS
        if step >= SAMPLE_OF:  # is this the same disk at all? it takes both sides long to find out block by block
            sample = alike[::step]
            del alike[::step]
            if await self._bring_pages(sample, buffer) >= len(sample) * UNLIKE_SHARE:
                await self._ask("diff", alike, buffer)
                return
        await self._bring_pages(alike, buffer)

    async def _bring_pages(self, blocks: Sequence[int], buffer: memoryview) -> int:
        """The same, page by page where that is possible. Returns how many blocks came whole."""
        taken = await self._ask("pages", blocks, buffer)
        await self._ask("diff", taken.wrong, buffer)
        return taken.whole + len(taken.wrong)

    async def _ask(self, what: str, blocks: Sequence[int], buffer: memoryview, *, by_name: bool = False) -> Taken:
        """Tell what the target holds of these blocks, and take what comes, in as many answers as that takes. `by_name`:
        of blocks that differ and hold something the names are enough, at first."""
        found = Taken()
        while blocks:
            digests = self._onto.digests(blocks)
            brief = self._brief and by_name
            body = [encode_brief(blocks[0], digests) if brief else encode_offer(blocks, digests)]
            if what == "pages":
                body.append(await self._in_thread(self._onto.sums, blocks, buffer))
            query = f"level={packing_level(self._client.receive_rate)}" + "&pages=1" * by_name + "&brief=1" * brief
            answer = await self._client.call("POST", f"{self._path}/{what}?{query}", body)
            taken = await self._in_thread(self._onto.take, answer, frozenset(blocks), buffer)
            done = len(blocks) if taken.until is None else bisect.bisect_left(blocks, taken.until)
            if not done:
                raise BadFrame("the service answers nothing")
            self._progress(done - len(taken.alike) - len(taken.wrong))
            found.alike += taken.alike
            found.wrong += taken.wrong
            found.whole += taken.whole
            blocks = blocks[done:]
        return found

    def _progress(self, blocks: int) -> None:
        grid = self._onto.grid
        self._done_bytes = min(self._done_bytes + blocks * grid.block_bytes, grid.size_bytes)  # the last may be short
        self._on_progress(self._done_bytes, grid.size_bytes)

    async def _in_thread(self, call: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments)
