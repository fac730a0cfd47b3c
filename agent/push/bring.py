"""Bring changed blocks to the receiver: offer them, send what it lacks, as pages where it holds something alike.

Pages wait until there are enough for a request, whichever pieces of the disk they come from: a day of changes packs
a tenth smaller in groups of 4 MiB than in what one piece brings, and takes a quarter of the requests.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, TypeVar

from agent.client import ServiceClient
from agent.pieces import WORKERS, side_by_side
from agent.protocol.digests import ZERO_DIGEST, DigestMap
from agent.protocol.errors import BadMessage, DigestMismatch
from agent.protocol.frames import Answer, blocks_frame
from agent.protocol.grid import BlockGrid
from agent.protocol.messages import BlocksReply
from agent.protocol.pages import Patch, differing_pages, encode_patches, page_count
from agent.push.changes import Change, contents
from agent.push.offers import Offers, Said
from agent.push.packing import FIRST_BATCH_BYTES, PATCH_LEVEL, batch_bytes_for, level_for

RATE_WEIGHT = 0.3
OLDER_AT_ONCE = 2
"""Offers of blocks with something in their place: while the receiver reads that for one, it sums up for the other."""
PATCHES_AT_ONCE = 3
"""Requests with patches. More of them only wait for one another at the receiver, and hold up offers there."""
WAITING_BATCHES = 3
"""So many requests' worth of patches may wait for their turn while the disk is read on."""
NEW_AT_ONCE = 3
"""Offers of blocks with nothing in their place: the receiver may copy them, which takes long, but its disk can do more
than one. Eight of them took 7 % more processor time for a clone, and were no faster."""

Buffer = bytes | bytearray | memoryview
T = TypeVar("T")


@dataclass(slots=True)
class Tally:
    """What a push did, in bytes of disk."""

    read_bytes: int = 0
    changed_bytes: int = 0
    deduplicated_bytes: int = 0


class _Waiting:
    """Patches until there are enough of them."""

    def __init__(self) -> None:
        self.size_bytes = 0
        self._patches: list[Patch] = []

    def add(self, patches: Iterable[Patch]) -> None:
        for patch in patches:
            self._patches.append(patch)
            self.size_bytes += patch.size_bytes

    def take(self, most_bytes: int) -> list[Patch]:
        """Those that came first, by rising index; at least one."""
        count = taken_bytes = 0
        while count < len(self._patches) and (taken_bytes < most_bytes or not count):
            taken_bytes += self._patches[count].size_bytes
            count += 1
        taken, self._patches = self._patches[:count], self._patches[count:]
        self.size_bytes -= taken_bytes
        return sorted(taken, key=lambda patch: patch.index)


class Bringer:
    """One volume's way to the receiver. Packing runs on `threads`; the calls are for one event loop.

    `held` says what the receiver holds; an entry changes when the receiver has answered for that block. When all was
    brought, `finish` must be called."""

    def __init__(
        self,
        index: int,
        held: DigestMap,
        client: ServiceClient,
        threads: Executor,
        tally: Tally,
        session: str,
        on_reply: Callable[[BlocksReply], None] = lambda reply: None,
    ) -> None:
        self._path = f"/agent/v1/sessions/{session}/volumes/{index}"
        self._held = held
        self._grid: BlockGrid = held.grid
        self._client = client
        self._threads = threads
        self._tally = tally
        self._on_reply = on_reply
        self._rate: float | None = None
        self._offers = Offers(self._path, self._grid, client, at_once=OLDER_AT_ONCE)
        self._offers_of_new = Offers(self._path, self._grid, client, at_once=NEW_AT_ONCE)
        self._patches = _Waiting()
        self._sending = asyncio.Semaphore(WORKERS)
        self._patching = asyncio.Semaphore(PATCHES_AT_ONCE)
        self._wrong: list[int] = []

    async def bring(self, changes: Sequence[Change], *, whole: bool = False, new: bool = False) -> None:
        """Make the receiver hold these blocks, at most as many as one OFFER may name; their indices rise. Pages of
        some may wait, as copies, for `finish`; none do if they are to go `whole`. `new`: the receiver is known
        to lack them, and would answer so."""
        if not changes:
            return
        if new:
            said = [Said(Answer.LACKING)] * len(changes)
        elif whole:
            said = await self._offers.ask_apart(changes, with_sums=False)
        elif all(self._held[change.index] == ZERO_DIGEST for change in changes):
            said = await self._offers_of_new.ask(changes)
        else:
            said = await self._offers.ask(changes)
        answered = list(zip(changes, said, strict=True))
        lacking = [change for change, one in answered if one.answer in (Answer.LACKING, Answer.DIFFERS)]
        alike = [(change, one.sums) for change, one in answered if one.answer == Answer.DIFFERS]
        patches = await self._in_thread(self._patches_of, alike) if alike else {}
        await self._send_whole([change for change in lacking if change.index not in patches], bool(alike))
        for change, one in answered:
            if one.answer == Answer.COPIED:
                self._tally.deduplicated_bytes += self._grid.length(change.index)
            if one.answer != Answer.HAVE or (change.source is None and self._held[change.index] != ZERO_DIGEST):
                self._tally.changed_bytes += self._grid.length(change.index)
            if change.index not in patches:
                self._held[change.index] = change.digest
        self._patches.add(patches.values())
        while self._patches.size_bytes >= (batch := batch_bytes_for(self._rate)):
            if self._patching.locked() and self._patches.size_bytes < WAITING_BATCHES * batch:
                break  # others send, and we can read on
            async with self._patching:
                if self._patches.size_bytes >= batch:  # else others sent them meanwhile
                    await self._send_patches(batch)

    async def finish(self) -> list[int]:
        """Send the pages that still wait, side by side: nothing else is to be done meanwhile. Returns the blocks,
        rising, that did not come out as they should: the receiver's older block is another than was thought, so they
        are to be brought whole."""
        share = max(FIRST_BATCH_BYTES, -(-self._patches.size_bytes // PATCHES_AT_ONCE))

        async def send() -> None:
            while self._patches.size_bytes:
                await self._send_patches(min(share, batch_bytes_for(self._rate)))

        await side_by_side([send() for _ in range(PATCHES_AT_ONCE)])
        wrong, self._wrong = self._wrong, []
        return sorted(wrong)

    def _patches_of(self, alike: list[tuple[Change, bytes]]) -> dict[int, Patch]:
        """What to send of blocks that are like those which the receiver has, by these sums; the rest go whole."""
        found = {}
        for change, sums in alike:
            content = change.content(self._grid)
            pages = differing_pages(content, sums)
            if 0 < len(pages) < page_count(len(content)):
                found[change.index] = Patch.of(change.index, change.digest, content, pages)
        return found

    async def _send_whole(self, changes: list[Change], among_patches: bool) -> None:
        """Side by side, in as many requests as it takes: a piece is no one worker's, so that the last ones of a volume
        still fill all lines."""
        requests = []
        while changes:
            count = self._fitting(changes)
            requests.append(self._send_some(changes[:count], among_patches))
            changes = changes[count:]
        await side_by_side(requests)

    async def _send_some(self, changes: list[Change], among_patches: bool) -> None:
        async with self._sending, self._client.sending.turn():
            level = level_for(self._client.network_rate)
            if among_patches:  # few and scattered: packing them better costs next to nothing
                level = max(level, PATCH_LEVEL)
            body = await self._in_thread(self._packed, changes, level)
            if (await self._send(body)).mismatched:
                raise DigestMismatch("the receiver does not take blocks that were sent whole")

    def _fitting(self, changes: list[Change]) -> int:
        """How many of these to send whole in one request; at least one."""
        room = batch_bytes_for(self._rate)
        for count, change in enumerate(changes):
            room -= self._grid.length(change.index)
            if room < 0 and count:
                return count
        return len(changes)

    async def _send_patches(self, most_bytes: int) -> None:
        """One request of those that wait."""
        patches = self._patches.take(most_bytes)
        level = max(level_for(self._client.network_rate), PATCH_LEVEL)
        reply = await self._send(await self._in_thread(encode_patches, patches, self._grid, level))
        wrong = set(reply.mismatched)
        if not wrong <= {patch.index for patch in patches}:
            raise BadMessage("the receiver asks for blocks that were not sent")
        self._wrong += wrong
        for patch in patches:
            if patch.index not in wrong:
                self._held[patch.index] = patch.digest

    async def _send(self, body: Sequence[Buffer]) -> BlocksReply:
        began = time.monotonic()
        reply = await self._client.bring(f"{self._path}/blocks", body, BlocksReply)
        self._on_reply(reply)
        self._measure(sum(map(len, body)), time.monotonic() - began)
        return reply

    def _packed(self, changes: list[Change], level: int) -> tuple[bytes, Buffer]:
        digests = b"".join(change.digest for change in changes)
        return blocks_frame([change.index for change in changes], digests, contents(changes, self._grid), level)

    async def _in_thread(self, call: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments)

    def _measure(self, size_bytes: int, seconds: float) -> None:
        rate = size_bytes / max(seconds, 1e-3)
        self._rate = rate if self._rate is None else self._rate + (rate - self._rate) * RATE_WEIGHT
