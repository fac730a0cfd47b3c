"""One source volume within a push: reads and hashes pieces, offers what changed, sends what is lacking.

`held` is what the receiver holds of the volume, as far as we know: it begins as the cached map of the last point, and
an entry changes when the receiver has answered for that block. A push is done when `held` describes the source.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from dataclasses import dataclass

from agent.client import ServiceClient
from agent.pieces import PIECE_BLOCKS, hash_piece, pieces_with_data, share_out
from agent.protocol.digests import DIGEST_BYTES, ZERO_DIGEST, DigestMap
from agent.protocol.errors import BadMessage
from agent.protocol.frames import Answer, encode_blocks, encode_offer
from agent.protocol.grid import BlockGrid
from agent.volumes.source import SourceVolume, aligned_buffer

COMPRESSION_LEVEL = 1


@dataclass(slots=True)
class Tally:
    """What a push did, in bytes of disk."""

    read_bytes: int = 0
    changed_bytes: int = 0
    deduplicated_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Change:
    """A block that differs from what the receiver holds, and its content: None for a block of zeros."""

    index: int
    digest: bytes
    content: memoryview | bytes | None


class VolumePush:
    """Reading and hashing run on `threads`; the calls are for one event loop."""

    def __init__(
        self,
        index: int,
        source: SourceVolume,
        held: DigestMap,
        client: ServiceClient,
        threads: Executor,
        tally: Tally,
        on_progress: Callable[[int], None],
    ) -> None:
        self.index = index
        self.source = source
        self.grid: BlockGrid = held.grid
        self.held = held
        self.session = ""
        self._client = client
        self._threads = threads
        self._tally = tally
        self._on_progress = on_progress

    async def send_all(self, *, trust_held: bool) -> None:
        """Read the whole volume (but not its holes) and bring the receiver to it.

        `trust_held` is False when it is not known what the receiver holds: then every block is offered."""
        await self._send(pieces_with_data(self.grid, self.source.data_ranges()), trust_held)

    async def send_ranges(self, ranges: list[tuple[int, int]]) -> None:
        """The same for byte ranges that changed meanwhile."""
        await self._send(((blocks, True) for blocks in self.grid.covering(ranges, PIECE_BLOCKS)), True)

    def changes_within(self, ranges: list[tuple[int, int]], most_bytes: int) -> list[Change] | None:
        """Read the ranges now and return what differs from `held`, or None if that is more than `most_bytes`.

        For use while the filesystems are frozen: touches nothing but the source and memory."""
        found: list[Change] = []
        kept_bytes = 0
        buffer = aligned_buffer(PIECE_BLOCKS * self.grid.block_bytes)
        for blocks in self.grid.covering(ranges, PIECE_BLOCKS):
            digests = self._read_and_hash(blocks, buffer)
            for index in self._differing(blocks, digests):
                change = self._change(blocks, index, digests, buffer)
                kept = None if change.content is None else bytes(change.content)  # the buffer is read into again
                found.append(Change(index, change.digest, kept))
                kept_bytes += len(kept or b"")
            if kept_bytes > most_bytes:
                return None
        return found

    async def send_changes(self, changes: list[Change]) -> None:
        """Send what `changes_within` found."""
        for at in range(0, len(changes), PIECE_BLOCKS):
            await self._bring(changes[at : at + PIECE_BLOCKS])

    def whole(self) -> list[tuple[int, int]]:
        """The whole volume as one range."""
        return [(0, self.grid.size_bytes)]

    # --- pieces ---

    async def _send(self, pieces: Iterable[tuple[range, bool]], trust_held: bool) -> None:
        async def one(blocks: range, has_data: bool, buffer: memoryview) -> None:
            if has_data:
                loop = asyncio.get_running_loop()
                digests = await loop.run_in_executor(self._threads, self._read_and_hash, blocks, buffer)
            else:
                digests = bytes(len(blocks) * DIGEST_BYTES)
            indices = self._differing(blocks, digests) if trust_held else list(blocks)
            if indices:
                await self._bring([self._change(blocks, index, digests, buffer) for index in indices])
            self._on_progress(self.grid.span(blocks)[1])

        await share_out(pieces, self.grid, one)

    def _read_and_hash(self, blocks: range, buffer: memoryview) -> bytes:
        offset, length = self.grid.span(blocks)
        self.source.read_into(buffer[:length], offset)
        self._tally.read_bytes += length
        return hash_piece(self.grid, buffer[:length])

    def _differing(self, blocks: range, digests: bytes) -> list[int]:
        held = self.held.run(blocks)
        if held == digests:
            return []
        return [
            index
            for at, index in enumerate(blocks)
            if held[at * DIGEST_BYTES : (at + 1) * DIGEST_BYTES] != digests[at * DIGEST_BYTES : (at + 1) * DIGEST_BYTES]
        ]

    def _change(self, blocks: range, index: int, digests: bytes, buffer: memoryview) -> Change:
        """The change of one block of a piece; its content is a view into `buffer`."""
        at = index - blocks.start
        digest = digests[at * DIGEST_BYTES : (at + 1) * DIGEST_BYTES]
        if digest == ZERO_DIGEST:
            return Change(index, digest, None)
        offset = at * self.grid.block_bytes
        return Change(index, digest, buffer[offset : offset + self.grid.length(index)])

    # --- the wire ---

    async def _bring(self, changes: list[Change]) -> None:
        """Make the receiver hold these blocks: offer, then send what it lacks."""
        path = f"/agent/v1/sessions/{self.session}/volumes/{self.index}"
        digests = b"".join(change.digest for change in changes)
        answers = await self._client.call(
            "POST", f"{path}/offer", encode_offer([change.index for change in changes], digests)
        )
        if len(answers) != len(changes):
            raise BadMessage(f"the receiver answered {len(answers)} of {len(changes)} blocks that were offered")
        lacking = [change for change, answer in zip(changes, answers, strict=True) if answer == Answer.LACKING]
        if lacking:
            body = await asyncio.get_running_loop().run_in_executor(self._threads, _packed, lacking)
            await self._client.call("POST", f"{path}/blocks", body)
        for change, answer in zip(changes, answers, strict=True):
            if answer == Answer.COPIED:
                self._tally.deduplicated_bytes += self.grid.length(change.index)
            if answer != Answer.HAVE or (change.content is None and self.held[change.index] != ZERO_DIGEST):
                self._tally.changed_bytes += self.grid.length(change.index)
            self.held[change.index] = change.digest


def _packed(changes: list[Change]) -> bytes:
    contents = [change.content for change in changes if change.content is not None]
    if len(contents) != len(changes):
        raise BadMessage("the receiver asks for the content of a block of zeros")
    digests = b"".join(change.digest for change in changes)
    return encode_blocks([change.index for change in changes], digests, contents, COMPRESSION_LEVEL)
