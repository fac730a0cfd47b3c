"""An agent that knows nothing of the replica offers only where segments differ."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agent.protocol.digests import DIGEST_BYTES, SEGMENT_BLOCKS, DigestMap
from agent.protocol.errors import BadMessage, SessionUnknown
from agent.protocol.frames import Kind, decode_single
from agent.protocol.grid import BlockGrid
from agent.protocol.messages import BeginRequest, CommitRequest, VolumeDeclaration
from agent.push.bring import Bringer, Tally
from agent.push.segments import ask_segments
from agent.push.unasked import Unasked
from agent.push.volume import VolumePush
from agent.volumes.source import SourceVolume
from service.receiver import receiver as receiver_module
from tests.service.receiver.pushing import SERVER, Bench
from tests.service.receiver.test_bringing import Client

SMALL = 4096
SEGMENT = SEGMENT_BLOCKS * SMALL
PIECE = 4 << 20


class Offered(Client):
    """Notes which blocks are offered."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        self.blocks: list[int] = []

    async def call(
        self, method: str, path: str, body: Sequence[bytes | bytearray | memoryview], content_type: str = ""
    ) -> bytes:
        if "/offer" in path:
            self.blocks += decode_single(b"".join(body), Kind.OFFER).indices
        return await super().call(method, path, body, content_type)


class Counted(SourceVolume):
    reads: Counter[int]

    def read_into(self, buffer: memoryview, offset: int) -> None:
        self.reads[offset // SEGMENT] += 1
        super().read_into(buffer, offset)


def data(seed: int, size_bytes: int = SEGMENT) -> bytes:
    return random.Random(seed).randbytes(size_bytes)


HOLE = bytes(SEGMENT)
SAME, SHORT = data(1), data(2, 5 * SMALL)
BEFORE = SAME + HOLE + HOLE + data(3) + data(4) + SHORT
AFTER = SAME + HOLE + data(5) + HOLE + data(4)[:-SMALL] + data(6, SMALL) + SHORT
"""Equal, a hole at both, new here, gone here, one block changed, equal and short."""


def begin(bench: Bench, image: bytes) -> str:
    declared = [VolumeDeclaration(path="/dev/vda", size_bytes=len(image), block_bytes=SMALL)]
    return bench.receiver.begin(SERVER.id, lambda: SERVER, BeginRequest(machine_id="m", volumes=declared)).session


def push(bench: Bench, image: bytes, path: Path) -> tuple[Offered, Counter[int], int]:
    """As an agent that lost its cache: what it offered, how often it read each segment, and how much had changed."""
    with open(path, "wb") as file:
        for at in range(0, len(image), SEGMENT):
            if any(image[at : at + SEGMENT]):
                file.seek(at)
                file.write(image[at : at + SEGMENT])
        file.truncate(len(image))
    session, client, tally = begin(bench, image), Offered(bench), Tally()
    held = DigestMap(BlockGrid(len(image), SMALL))
    with ThreadPoolExecutor(2) as threads, Counted.open(path) as source:
        source.reads = Counter()
        passed: list[int] = []
        volume = VolumePush(0, source, held, threads, tally, passed.append)
        volume.unasked = Unasked(0, held, client, tally, session, offers=True)
        volume.bringer = Bringer(0, held, client, threads, tally, session)

        async def bring() -> None:
            await volume.send_all(await ask_segments(client, session, 0, held.grid))

        asyncio.run(bring())
        assert sum(passed) == len(image)
        assert tally.read_bytes == sum(min(PIECE, len(image) - at * SEGMENT) * n for at, n in source.reads.items())
    commit = CommitRequest(roots=[held.root().hex()], consistency="crash", completeness="scanned", age_seconds=0.0)
    point = bench.receiver.commit(SERVER.id, session, lambda _: SERVER, commit)
    assert bench.content(point.id) == image
    return client, source.reads, tally.changed_bytes


def test_only_blocks_of_segments_that_differ_are_offered(bench: Bench, tmp_path: Path) -> None:
    push(bench, BEFORE, tmp_path / "disk")
    client, reads, changed_bytes = push(bench, AFTER, tmp_path / "disk")
    assert {block // SEGMENT_BLOCKS for block in client.blocks} == {2, 3, 4}
    assert len(client.blocks) == 3 * SEGMENT_BLOCKS
    assert changed_bytes == SMALL + SEGMENT, "what became a hole is answered at once, and never was known here"
    assert reads == {0: 1, 2: 1, 4: 2, 5: 1}, "nor is what is the same read twice"
    again, reads, changed_bytes = push(bench, AFTER, tmp_path / "disk")
    assert (again.blocks, changed_bytes) == ([], 0)
    assert reads == {0: 1, 2: 1, 4: 1, 5: 1}


def test_answers_come_in_pages(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiver_module, "SEGMENTS_AT_ONCE", 4)
    push(bench, BEFORE, tmp_path / "disk")
    client, _, _ = push(bench, BEFORE, tmp_path / "disk")
    assert client.requests == ["segments?first=0", "segments?first=4"]


@pytest.mark.parametrize("answer", [b"", b"x" * 33, b"x" * DIGEST_BYTES * 7])
def test_what_is_no_answer_is_refused(bench: Bench, answer: bytes) -> None:
    class Liar(Client):
        async def call(self, *_: object, **__: object) -> bytes:  # type: ignore[override]
            return answer

    with pytest.raises(BadMessage, match="no digests of 6 segments"):
        asyncio.run(ask_segments(Liar(bench), "pt-x", 0, BlockGrid(len(BEFORE), SMALL)))


def test_segments_are_told_to_whoever_has_the_session_alone(bench: Bench) -> None:
    session = begin(bench, BEFORE)
    assert len(bench.receiver.segments(SERVER.id, session, 0, 2)) == 4 * DIGEST_BYTES
    assert bench.receiver.segments(SERVER.id, session, 0, 6) == b""
    with pytest.raises(BadMessage):
        bench.receiver.segments(SERVER.id, session, 0, -1)
    with pytest.raises(SessionUnknown):
        bench.receiver.segments("srv-other", session, 0, 0)
    bench.receiver.abandon(SERVER.id, session, "that was all")
