"""The agent's way of bringing changes, with the receiver that answers: pages are collected, and never trusted."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import pytest

from agent.client import ServiceClient
from agent.protocol.digests import DIGEST_BYTES, DigestMap, block_digest
from agent.protocol.errors import TransportError
from agent.protocol.frames import Answer, Kind, decode_single
from agent.protocol.grid import BlockGrid
from agent.protocol.messages import BlocksReply
from agent.protocol.pages import PAGE_BYTES, page_sums
from agent.push.bring import PATCHES_AT_ONCE, WAITING_BATCHES, Bringer, Tally
from agent.push.changes import Change
from agent.push.offers import Offers, Said
from agent.push.packing import FIRST_BATCH_BYTES
from agent.push.unasked import Unasked
from agent.push.volume import VolumePush
from agent.turns import Turns
from agent.volumes.source import SourceVolume
from tests.service.receiver.pushing import BLOCK, SERVER, Bench, Pusher

BLOCKS = 200
GRID = BlockGrid(BLOCKS * BLOCK, BLOCK)


class Client(ServiceClient):
    """Its requests go straight to the receiver. `deceive` makes the receiver seem to have the pages of that image."""

    def __init__(self, bench: Bench, deceive: bytes | None = None) -> None:
        self.requests: list[str] = []
        self._bench = bench
        self._deceive = deceive

    @property
    def sending(self) -> Turns:
        return Turns(8)

    @property
    def network_rate(self) -> float | None:
        return None

    def allow_requests(self, most: int) -> None:
        assert most > 0

    async def call(
        self, method: str, path: str, body: Sequence[bytes | bytearray | memoryview], content_type: str = ""
    ) -> bytes:
        session, _, rest = path.removeprefix("/agent/v1/sessions/").partition("/volumes/0/")
        self.requests.append(rest)
        if rest.startswith("segments?first="):
            return self._bench.receiver.segments(SERVER.id, session, 0, int(rest.partition("=")[2]))
        offer, sums = b"".join(body), rest == "offer?sums=1"
        answer = self._bench.receiver.offer(SERVER.id, session, 0, offer, with_sums=sums)
        if not sums or self._deceive is None:
            return answer
        answers = answer[: len(decode_single(offer, Kind.OFFER).indices)]
        return answers + page_sums(self._deceive[:BLOCK]) * answers.count(Answer.DIFFERS)

    async def bring(self, path: str, body: Sequence[bytes | bytearray | memoryview], reply: type) -> BlocksReply:
        session = path.split("/")[4]
        self.requests.append("blocks")
        return self._bench.receiver.blocks(SERVER.id, session, 0, b"".join(body))


@pytest.fixture
def threads() -> Iterator[Executor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def image_of(seed: int) -> bytes:
    """Every block the same, so that one block's sums do for all."""
    return random.Random(seed).randbytes(BLOCK) * BLOCKS


def changed(image: bytes, pages: int) -> bytes:
    """Another byte in the first `pages` pages of every block."""
    block = bytearray(image[:BLOCK])
    for page in range(pages):
        block[page * PAGE_BYTES] ^= 0xFF
    return bytes(block) * BLOCKS


def held_of(image: bytes) -> DigestMap:
    held = DigestMap(GRID)
    for index in range(BLOCKS):
        held[index] = block_digest(image[index * BLOCK : (index + 1) * BLOCK])
    return held


def volume_of(client: Client, session: str, before: bytes, path: Path, threads: Executor) -> VolumePush:
    """A push of the file, whose receiver is known to hold `before`."""
    held = held_of(before)
    tally = Tally()
    volume = VolumePush(0, SourceVolume.open(path), held, threads, tally, lambda _: None)
    volume.bringer = Bringer(0, held, client, threads, tally, session)
    volume.unasked = Unasked(0, held, client, tally, session, offers=True)
    return volume


def test_pages_of_many_pieces_travel_together(bench: Bench, pusher: Pusher, tmp_path: Path, threads: Executor) -> None:
    image = image_of(1)
    pusher.push(image)
    other = changed(image, 1)
    fresh = (image[: 3 * BLOCK] + other[:BLOCK]) * (BLOCKS // 4)
    path = tmp_path / "disk"
    path.write_bytes(fresh)
    session = pusher.begin(fresh).session
    client = Client(bench)
    volume = volume_of(client, session, image, path, threads)
    asyncio.run(volume.send_all())
    volume.source.close()
    assert client.requests.count("offer?sums=1") > 1, "there are several pieces"
    assert client.requests.count("blocks") == 1 and client.requests[-1] == "blocks"
    assert bench.content(pusher.commit(session, fresh).id) == fresh


@pytest.mark.parametrize("frozen", [False, True])
def test_blocks_whose_pages_were_wrongly_thought_to_be_there_go_whole(
    bench: Bench, pusher: Pusher, tmp_path: Path, threads: Executor, frozen: bool
) -> None:
    image = image_of(2)
    pusher.push(image)
    fresh = changed(image, 2)
    path = tmp_path / "disk"
    path.write_bytes(fresh)
    session = pusher.begin(fresh).session
    client = Client(bench, deceive=changed(image, 1))  # the first page's sum is the new one's
    volume = volume_of(client, session, image, path, threads)
    if frozen:
        changes = volume.changes_within(volume.whole(), GRID.size_bytes)
        assert changes is not None
        path.write_bytes(image)  # what was read at the instant counts
        asyncio.run(volume.send_changes(changes))
    else:
        asyncio.run(volume.send_all())
    volume.source.close()
    assert "offer" in client.requests, "what did not come out right is offered again, without patching"
    assert all(volume.held[index] == block_digest(fresh[:BLOCK]) for index in range(BLOCKS))
    assert bench.content(pusher.commit(session, fresh).id) == fresh


def test_a_first_push_offers_nothing_also_where_the_line_takes_no_whole_pieces(
    bench: Bench, pusher: Pusher, tmp_path: Path, threads: Executor
) -> None:
    fresh = random.Random(3).randbytes(BLOCK * BLOCKS)
    path = tmp_path / "disk"
    path.write_bytes(fresh)
    begun = pusher.begin(fresh)
    client, held, tally = Client(bench), DigestMap(GRID), Tally()
    volume = VolumePush(0, SourceVolume.open(path), held, threads, tally, lambda _: None)
    volume.unasked = Unasked(0, held, client, tally, begun.session, offers=begun.offers)
    volume.bringer = Bringer(0, held, client, threads, tally, begun.session, volume.unasked.heard)
    asyncio.run(volume.send_all())
    volume.source.close()
    assert set(client.requests) == {"blocks"} and tally.changed_bytes == len(fresh)
    assert bench.content(pusher.commit(begun.session, fresh).id) == fresh


class Slow(Client):
    """A request begins, and others may begin to wait, before it is answered; or fails, if it is told to."""

    failing = False

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        self.begun = asyncio.Event()

    async def call(
        self, method: str, path: str, body: Sequence[bytes | bytearray | memoryview], content_type: str = ""
    ) -> bytes:
        self.begun.set()
        for _ in range(3):
            await asyncio.sleep(0)
        if self.failing:
            self.failing = False
            raise TransportError("the line is down")
        return await super().call(method, path, body, content_type)


async def one_after_the_other(client: Slow, offers: Offers, *parts: list[Change]) -> list[list[Said] | BaseException]:
    """The first is on its way when the others come."""
    first = asyncio.create_task(offers.ask(parts[0]))
    await client.begun.wait()
    return await asyncio.gather(first, *map(offers.ask, parts[1:]), return_exceptions=True)


def changes_of(image: bytes, *indices: int) -> list[Change]:
    return [Change(index, block_digest(image[:BLOCK]), image[:BLOCK]) for index in indices]


def test_what_is_offered_during_an_offer_goes_together_and_each_gets_its_own_answers(
    bench: Bench, pusher: Pusher
) -> None:
    image = image_of(3)
    pusher.push(image)
    fresh = changed(image, 1)
    client = Slow(bench)
    session = pusher.begin(fresh).session

    async def ask() -> list[list[Said] | BaseException]:
        offers = Offers(f"/agent/v1/sessions/{session}/volumes/0", GRID, client, at_once=1)
        parts = [(fresh, 9), (fresh, 7, 150), (image, 3), (fresh, 5, 8)]
        return await one_after_the_other(client, offers, *[changes_of(of, *indices) for of, *indices in parts])

    differs, have = Said(Answer.DIFFERS, page_sums(image[:BLOCK])), Said(Answer.HAVE)
    assert asyncio.run(ask()) == [[differs], [differs] * 2, [have], [differs] * 2]
    assert len(client.requests) == 2


def test_an_offer_that_fails_fails_those_who_asked_and_the_next_goes(bench: Bench, pusher: Pusher) -> None:
    image = image_of(4)
    pusher.push(image)
    client = Slow(bench)
    client.failing = True
    session = pusher.begin(image).session

    async def ask() -> list[list[Said] | BaseException]:
        offers = Offers(f"/agent/v1/sessions/{session}/volumes/0", GRID, client, at_once=1)
        return await one_after_the_other(client, offers, changes_of(image, 1), changes_of(image, 2))

    failed, answered = asyncio.run(ask())
    assert isinstance(failed, TransportError)
    assert answered == [Said(Answer.HAVE)]


class Held(Client):
    """Requests with blocks are not answered until they may go on."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        self.under_way = self.most_under_way = 0
        self.full, self.go_on = asyncio.Event(), asyncio.Event()

    async def bring(self, path: str, body: Sequence[bytes | bytearray | memoryview], reply: type) -> BlocksReply:
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        if self.under_way == PATCHES_AT_ONCE:
            self.full.set()
        await self.go_on.wait()
        self.under_way -= 1
        return await super().bring(path, body, reply)


def test_few_requests_with_patches_are_under_way_and_a_little_more_may_wait(
    bench: Bench, pusher: Pusher, threads: Executor
) -> None:
    image = image_of(5)
    pusher.push(image)
    fresh = changed(image, 8)
    client = Held(bench)
    session = pusher.begin(fresh).session
    each = FIRST_BATCH_BYTES // (8 * PAGE_BYTES)
    parts = [changes_of(fresh, *range(at, at + each)) for at in range(0, BLOCKS, each)]

    async def bring() -> None:
        bringer = Bringer(0, held_of(image), client, threads, Tally(), session)
        sending = [asyncio.create_task(bringer.bring(part)) for part in parts[:PATCHES_AT_ONCE]]
        await client.full.wait()
        for part in parts[PATCHES_AT_ONCE : PATCHES_AT_ONCE + WAITING_BATCHES - 1]:
            await bringer.bring(part)  # whoever has read it can read on
        sending += [asyncio.create_task(bringer.bring(part)) for part in parts[PATCHES_AT_ONCE + WAITING_BATCHES - 1 :]]
        done, _ = await asyncio.wait(sending, timeout=0.1)
        assert not done and client.most_under_way == PATCHES_AT_ONCE
        client.go_on.set()
        await asyncio.gather(*sending)
        assert await bringer.finish() == []

    asyncio.run(bring())
    assert client.most_under_way == PATCHES_AT_ONCE
    assert bench.content(pusher.commit(session, fresh).id) == fresh


class Counted(SourceVolume):
    """Tells how often each piece was read."""

    reads: Counter[int]

    def read_into(self, buffer: memoryview, offset: int) -> None:
        self.reads[offset] += 1
        super().read_into(buffer, offset)


@pytest.mark.parametrize("trusted", [True, False])
def test_what_was_looked_at_ahead_is_read_again_only_if_it_has_to_be_brought(
    bench: Bench, pusher: Pusher, tmp_path: Path, threads: Executor, trusted: bool
) -> None:
    image = image_of(6)
    pusher.push(image)
    fresh = image[: 5 * BLOCK] + changed(image, 1)[:BLOCK] + image[6 * BLOCK :]
    path = tmp_path / "disk"
    path.write_bytes(fresh)
    session = pusher.begin(fresh).session
    volume = volume_of(Client(bench), session, image, path, threads)
    volume.source.close()
    with Counted.open(path) as source:
        source.reads = Counter()
        volume.source = source
        volume.look_ahead(threading.Event())
        pieces = set(source.reads)
        assert len(pieces) > 2 and set(source.reads.values()) == {1}
        asyncio.run(volume.send_all(None if trusted else [bytes(DIGEST_BYTES)]))
    again = {offset for offset in pieces if source.reads[offset] == 2}
    assert again == ({0} if trusted else pieces)
    assert bench.content(pusher.commit(session, fresh).id) == fresh


def test_looking_ahead_ends_when_it_is_told_to(bench: Bench, pusher: Pusher, tmp_path: Path, threads: Executor) -> None:
    image = image_of(7)
    path = tmp_path / "disk"
    path.write_bytes(image)
    session = pusher.begin(image).session
    volume = volume_of(Client(bench), session, bytes(len(image)), path, threads)
    volume.source.close()
    stop = threading.Event()
    stop.set()
    with Counted.open(path) as source:
        source.reads = Counter()
        volume.source = source
        volume.look_ahead(stop)
        assert not source.reads
