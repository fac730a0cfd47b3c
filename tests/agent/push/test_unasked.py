"""Which pieces go without an offer, and what their bodies hold."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from agent.pieces import hash_piece
from agent.protocol.digests import DigestMap
from agent.protocol.errors import BadMessage
from agent.protocol.frames import Kind, decode_single
from agent.protocol.grid import BlockGrid
from agent.protocol.messages import BlocksReply
from agent.push.bring import Tally
from agent.push.unasked import Unasked

BLOCK = 65536
GRID = BlockGrid(15 * BLOCK + 512, BLOCK)
BLOCKS = range(8, 16)
FAST, SLOW = 1e9, 1e6


class Line:
    """The service at the end of a line that takes so much."""

    def __init__(self, network_rate: float | None = FAST) -> None:
        self.network_rate = network_rate
        self.reply = BlocksReply(written_blocks=0, offers=False)
        self.bodies: list[bytes] = []
        self.allowed: list[int] = []

    def allow_requests(self, most: int) -> None:
        self.allowed.append(most)

    async def bring(self, path: str, body: Any, reply: type[BlocksReply]) -> BlocksReply:
        assert path == "/agent/v1/sessions/pt-1/volumes/3/blocks"
        self.bodies.append(b"".join(body))
        return self.reply


class Sender:
    def __init__(self, line: Line, *, offers: bool = False) -> None:
        self.line, self.held, self.tally = line, DigestMap(GRID), Tally()
        self.unasked = Unasked(3, self.held, line, self.tally, "pt-1", offers=offers)  # type: ignore[arg-type]

    def packed(self, content: bytes) -> Any:
        return self.unasked.packed(BLOCKS, self.digests(content), memoryview(content))

    def send(self, content: bytes) -> None:
        asyncio.run(self.unasked.send(BLOCKS, self.digests(content), self.packed(content)))

    def digests(self, content: bytes) -> bytes:
        return hash_piece(GRID, memoryview(content))


def piece(*zero: int) -> bytes:
    """The last eight blocks of the volume, some of them zero."""
    content = bytearray(random.Random(1).randbytes(7 * BLOCK + 512))
    for at in zero:
        content[at * BLOCK : (at + 1) * BLOCK] = bytes(len(content[at * BLOCK : (at + 1) * BLOCK]))
    return bytes(content)


@pytest.mark.parametrize("zero", [(), (0, 3, 4), (7,)])
def test_a_body_brings_what_is_not_zero_and_then_the_replica_holds_it(zero: tuple[int, ...]) -> None:
    content, sender = piece(*zero), Sender(Line())
    sender.send(content)
    frame = decode_single(sender.line.bodies[0], Kind.BLOCKS)
    assert list(frame.indices) == [index for at, index in enumerate(BLOCKS) if at not in zero]
    expected = b"".join(content[at * BLOCK : (at + 1) * BLOCK] for at in range(8) if at not in zero)
    assert bytes(frame.verified(GRID)) == expected
    assert sender.tally.changed_bytes == len(expected)
    assert sender.held.run(BLOCKS) == sender.digests(content)


def test_everything_is_offered_that_the_replica_may_hold_something_like() -> None:
    sender = Sender(Line())
    sender.held[BLOCKS[2]] = b"x" * 32
    assert sender.packed(piece()) is None and not sender.unasked.lacking(BLOCKS)


def test_everything_is_offered_where_the_receiver_wants_it_and_from_when_on_it_does() -> None:
    assert Sender(Line(), offers=True).packed(piece()) is None
    sender = Sender(Line())
    sender.line.reply = BlocksReply(written_blocks=8, offers=True)
    sender.send(piece())
    sender.held.set_run(BLOCKS, bytes(len(BLOCKS) * 32))
    assert sender.packed(piece()) is None and not sender.unasked.lacking(BLOCKS)


@pytest.mark.parametrize("rate", [None, SLOW])
def test_a_line_that_is_slow_or_not_known_yet_gets_no_whole_pieces(rate: float | None) -> None:
    sender = Sender(Line(rate))
    assert sender.packed(piece()) is None and sender.unasked.lacking(BLOCKS)


def test_few_blocks_wait_for_others() -> None:
    assert Sender(Line()).packed(piece(*range(1, 8))) is None


def test_a_receiver_that_calls_whole_blocks_mismatched_is_not_believed() -> None:
    sender = Sender(Line())
    sender.line.reply = BlocksReply(written_blocks=7, mismatched=[9], offers=False)
    with pytest.raises(BadMessage):
        sender.send(piece())
    assert sender.held.run(BLOCKS) == bytes(8 * 32)
