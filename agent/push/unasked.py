"""Blocks that are sent without being offered: the replica has nothing in their place, and nobody else in the tenant has
anything that could be copied. An offer of them could only be answered in one way."""

from __future__ import annotations

from collections.abc import Sequence

from agent.client import ServiceClient
from agent.pieces import PIECE_BYTES, WORKERS
from agent.protocol.digests import DIGEST_BYTES, ZERO_DIGEST, DigestMap
from agent.protocol.errors import BadMessage
from agent.protocol.frames import blocks_frame
from agent.protocol.messages import BlocksReply
from agent.push.bring import Tally
from agent.push.packing import KEPT_SHARE, level_for

Buffer = bytes | bytearray | memoryview


class Unasked:
    """Of one volume. `offers`: the receiver wants everything offered; once it says so, that holds from then on."""

    def __init__(
        self, index: int, held: DigestMap, client: ServiceClient, tally: Tally, session: str, *, offers: bool
    ) -> None:
        self._path = f"/agent/v1/sessions/{session}/volumes/{index}/blocks"
        self._held = held
        self._client = client
        self._tally = tally
        self._offers = offers

    def packed(self, blocks: range, digests: bytes, content: memoryview) -> list[Buffer] | None:
        """The body that brings these blocks, or None if they have to be offered or are too much for one request, since
        the line takes no such within a second. For any thread; `content` is theirs, of which `held` is known to be
        true."""
        rate = self._client.network_rate
        if rate is None or rate < WORKERS * PIECE_BYTES or not self.lacking(blocks):
            return None
        present = _present(digests)
        if len(present) * KEPT_SHARE < len(blocks):
            return None  # with few others it would be a request for itself
        if len(present) == len(blocks):
            parts = [content]
        else:
            size = self._held.grid.block_bytes
            parts = [content[at * size : (at + 1) * size] for at in present]
            digests = b"".join([digests[at * DIGEST_BYTES : (at + 1) * DIGEST_BYTES] for at in present])
        return [*blocks_frame([blocks[at] for at in present], digests, parts, level_for(rate))]

    def lacking(self, blocks: range) -> bool:
        """Is it known that the receiver lacks these, whatever they are, so that they need not be offered?"""
        return not self._offers and self._held.run(blocks) == bytes(len(blocks) * DIGEST_BYTES)

    def heard(self, reply: BlocksReply) -> None:
        """What the receiver says with each answer."""
        self._client.allow_requests(reply.requests)
        self._offers = self._offers or reply.offers

    async def send(self, blocks: range, digests: bytes, body: list[Buffer]) -> None:
        """Bring what `packed` gave for these blocks."""
        reply = await self._client.bring(self._path, body, BlocksReply)
        if reply.mismatched:
            raise BadMessage("the receiver says of blocks that were sent whole that they did not come out right")
        self.heard(reply)
        self._tally.changed_bytes += sum(self._held.grid.length(blocks[at]) for at in _present(digests))
        self._held.set_run(blocks, digests)


def _present(digests: bytes) -> Sequence[int]:
    """The positions of blocks that are not zero."""
    if ZERO_DIGEST not in digests:
        return range(len(digests) // DIGEST_BYTES)
    ends = range(DIGEST_BYTES, len(digests) + 1, DIGEST_BYTES)
    return [at for at, end in enumerate(ends) if digests[end - DIGEST_BYTES : end] != ZERO_DIGEST]
