"""Bring changed blocks to the receiver: offer them, send what it lacks, as pages where it holds something alike."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, TypeVar

from agent.client import ServiceClient
from agent.protocol.digests import ZERO_DIGEST, DigestMap
from agent.protocol.errors import BadMessage, DigestMismatch
from agent.protocol.frames import Answer, blocks_frame, encode_offer
from agent.protocol.grid import BlockGrid
from agent.protocol.messages import BlocksReply
from agent.protocol.pages import PAGE_BYTES, SUM_BYTES, Patch, differing_pages, encode_patches, page_count
from agent.push.changes import Change, contents
from agent.push.packing import PATCH_LEVEL, batch_bytes_for, level_for

RATE_WEIGHT = 0.3

Buffer = bytes | bytearray | memoryview
T = TypeVar("T")


@dataclass(slots=True)
class Tally:
    """What a push did, in bytes of disk."""

    read_bytes: int = 0
    changed_bytes: int = 0
    deduplicated_bytes: int = 0


class Bringer:
    """One volume's way to the receiver. Packing runs on `threads`; the calls are for one event loop.

    `held` says what the receiver holds; an entry changes when the receiver has answered for that block."""

    def __init__(
        self, index: int, held: DigestMap, client: ServiceClient, threads: Executor, tally: Tally, session: str
    ) -> None:
        self._path = f"/agent/v1/sessions/{session}/volumes/{index}"
        self._held = held
        self._grid: BlockGrid = held.grid
        self._client = client
        self._threads = threads
        self._tally = tally
        self._rate: float | None = None

    async def bring(self, changes: Sequence[Change]) -> None:
        """Make the receiver hold these blocks, at most MAX_BLOCKS; their indices rise."""
        if not changes:
            return
        offer = encode_offer([change.index for change in changes], b"".join(change.digest for change in changes))
        answer = await self._client.call("POST", f"{self._path}/offer?sums=1", [offer])
        answers, sums = answer[: len(changes)], answer[len(changes) :]
        if len(answers) != len(changes):
            raise BadMessage(f"the receiver answered {len(answers)} of {len(changes)} blocks that were offered")
        said = list(zip(changes, answers, strict=True))
        lacking = [change for change, answer in said if answer in (Answer.LACKING, Answer.DIFFERS)]
        if any(change.source is None for change in lacking):
            raise BadMessage("the receiver asks for the content of a block of zeros")
        alike = [change for change, answer in said if answer == Answer.DIFFERS]
        patches = await self._in_thread(self._patches, alike, sums)
        while lacking:  # what a request takes changes with the line
            count = self._fitting(lacking, patches)
            await self._send(lacking[:count], patches)
            lacking = lacking[count:]
        for change, answered in said:
            if answered == Answer.COPIED:
                self._tally.deduplicated_bytes += self._grid.length(change.index)
            if answered != Answer.HAVE or (change.source is None and self._held[change.index] != ZERO_DIGEST):
                self._tally.changed_bytes += self._grid.length(change.index)
            self._held[change.index] = change.digest

    def _patches(self, alike: list[Change], sums: bytes) -> dict[int, Patch]:
        """What to send of the blocks that are like those which the receiver has; the rest go whole."""
        found = {}
        at = 0
        for change in alike:
            content = change.content(self._grid)
            count = page_count(len(content))
            pages = differing_pages(content, sums[at : at + count * SUM_BYTES])
            at += count * SUM_BYTES
            if 0 < len(pages) < count:
                found[change.index] = Patch.of(change.index, change.digest, content, pages)
        if at != len(sums):
            raise BadMessage(f"the receiver named {len(sums)} bytes of sums, not {at}")
        return found

    def _fitting(self, lacking: list[Change], patches: dict[int, Patch]) -> int:
        """How many of these to send in one request; at least one."""
        room = batch_bytes_for(self._rate)
        for count, change in enumerate(lacking):
            patch = patches.get(change.index)
            room -= self._grid.length(change.index) if patch is None else len(patch.pages) * PAGE_BYTES
            if room < 0 and count:
                return count
        return len(lacking)

    async def _send(self, changes: list[Change], patches: dict[int, Patch]) -> None:
        level = level_for(self._client.network_rate)
        if patches:  # few and scattered: packing them better costs next to nothing
            level = max(level, PATCH_LEVEL)
        body = await self._in_thread(self._packed, changes, patches, level)
        began = time.monotonic()
        reply = await self._client.bring(f"{self._path}/blocks", body, BlocksReply)
        self._measure(sum(map(len, body)), time.monotonic() - began)
        if not reply.mismatched:
            return
        again = [change for change in changes if change.index in reply.mismatched]
        if not again:
            raise BadMessage("the receiver asks for blocks that were not sent")
        body = await self._in_thread(self._packed, again, {}, level)
        if (await self._client.bring(f"{self._path}/blocks", body, BlocksReply)).mismatched:
            raise DigestMismatch("the receiver does not take blocks that were sent whole")

    def _packed(self, changes: list[Change], patches: dict[int, Patch], level: int) -> list[Buffer]:
        """The body that brings these blocks: whole ones, then those of which pages are enough."""
        patched = [patches[change.index] for change in changes if change.index in patches]
        whole = [change for change in changes if change.index not in patches]
        body: list[Buffer] = []
        if whole:
            digests = b"".join(change.digest for change in whole)
            body += blocks_frame([change.index for change in whole], digests, contents(whole, self._grid), level)
        if patched:
            body += encode_patches(patched, self._grid, level)
        return body

    async def _in_thread(self, call: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments)

    def _measure(self, size_bytes: int, seconds: float) -> None:
        rate = size_bytes / max(seconds, 1e-3)
        self._rate = rate if self._rate is None else self._rate + (rate - self._rate) * RATE_WEIGHT
