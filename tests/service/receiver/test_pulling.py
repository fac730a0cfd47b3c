"""The agent's pull, with the receiver that answers: pages travel where the target holds an older block, and nothing is
taken that was not proven."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.client import ServiceClient
from agent.protocol.brief import encode_brief
from agent.protocol.digests import ZERO_DIGEST, block_digest
from agent.protocol.errors import BadFrame, DigestMismatch, TargetError, UnderstudyError
from agent.protocol.frames import (
    Kind,
    decode,
    encode_blocks,
    encode_offer,
    encode_until,
    encode_zeros,
    frame_bytes,
    patches_frame,
)
from agent.protocol.grid import BlockGrid
from agent.protocol.messages import Point
from agent.protocol.pages import PAGE_BYTES, Patch, encode_patches, page_sums, read_patches
from agent.pull.pull import SAMPLE_BLOCKS, SAMPLE_OF, PullResult, pull
from agent.transport import WireCount
from service.receiver import pull as pull_module
from service.receiver.pull import PointReader
from tests.service.receiver.pushing import BLOCK, SERVER, Bench, Pusher, answer_of, digests_of

PAGES = BLOCK // PAGE_BYTES


class Request(NamedTuple):
    what: str
    body: bytes
    answer: bytes


class Client(ServiceClient):
    """Its requests go straight to the receiver. `alter` may change what is answered to each, or what is asked."""

    def __init__(
        self,
        bench: Bench,
        *,
        alter_body: Callable[[str, bytes], bytes] = lambda what, body: body,
        alter: Callable[[str, bytes, bytes], bytes] = lambda what, body, answer: answer,
        rate: float | None = None,
        knows_brief: bool = True,
    ) -> None:
        self._knows_brief = knows_brief
        self.requests: list[Request] = []
        self._bench = bench
        self._reader = PointReader(bench.archive)
        self._alter_body, self._alter = alter_body, alter
        self._rate = rate

    @property
    def wire(self) -> WireCount:
        sent, received = (sum(len(request[at]) for request in self.requests) for at in (1, 2))
        return WireCount(sent, received)

    @property
    def receive_rate(self) -> float | None:
        return self._rate

    async def ask(self, path: str, message: Any, reply: type[Any], *, method: str = "POST") -> Any:
        assert path.endswith("/pulled")

    async def call(
        self, method: str, path: str, body: Sequence[bytes | bytearray | memoryview], *_: Any, **__: Any
    ) -> bytes:
        _, _, _, _, point, _, _, what = path.split("/")
        manifest = self._bench.archive.manifest(SERVER.id, point)
        what, _, query = what.partition("?")
        options = dict(option.split("=") for option in query.split("&") if option)
        asked = self._alter_body(what, b"".join(body))
        if what == "pages":
            answer = self._reader.pages(manifest, 0, asked, int(options["level"]))
        else:
            by_name, brief = options.get("pages") == "1", options.get("brief") == "1"
            answer = self._reader.differing(
                manifest, 0, asked, int(options["level"]), by_name=by_name, brief=brief and self._knows_brief
            )
        self.requests.append(Request(what, asked, self._alter(what, asked, answer_of(answer))))
        return self.requests[-1].answer

    def asked(self, what: str) -> list[Request]:
        return [request for request in self.requests if request.what == what]


def pulled(client: Client, point: Point, onto: Path, held: bytes | bytearray) -> PullResult:
    onto.write_bytes(held)
    return asyncio.run(pull(client, point, 0, str(onto)))


def with_pages(image: bytes, *pages: tuple[int, int]) -> bytearray:
    """The image with a byte changed in each (block, page)."""
    fresh = bytearray(image)
    for block, page in pages:
        fresh[block * BLOCK + page * PAGE_BYTES + 7] ^= 0xFF
    return fresh


def colliding(page: bytes, rng: random.Random) -> bytes:
    """Another page with the same sum."""
    wanted = page_sums(page)
    while True:
        other = page[:-8] + rng.randbytes(8)
        if other != page and page_sums(other) == wanted:
            return other


@pytest.fixture
def image() -> bytes:
    return random.Random(1).randbytes(40 * BLOCK + 2 * PAGE_BYTES + 512)


def test_pages_that_differ_travel_and_little_else(bench: Bench, pusher: Pusher, tmp_path: Path) -> None:
    """As after a day: scattered pages, a few new blocks, the line not yet known."""
    rng = random.Random(2)
    image = rng.randbytes(800 * BLOCK)
    stale = bytearray(image)
    pages = 0
    for block in rng.sample(range(800), 150):
        for page in rng.sample(range(PAGES), rng.choice([1, 1, 2, 3])):
            pages += 1
            at = block * BLOCK + page * PAGE_BYTES
            stale[at : at + PAGE_BYTES] = rng.randbytes(PAGE_BYTES)
    stale[:BLOCK] = bytes(BLOCK)
    point = pusher.push(image)
    client = Client(bench)
    result = pulled(client, point, tmp_path / "disk", stale)
    assert (tmp_path / "disk").read_bytes() == image
    assert result.written_bytes <= 151 * BLOCK
    assert client.wire.total_bytes <= 1.1 * (pages * PAGE_BYTES + BLOCK)
    assert len(client.asked("pages")) == 1


def test_a_disk_of_other_content_gets_whole_blocks_after_a_sample(bench: Bench, pusher: Pusher, tmp_path: Path) -> None:
    rng = random.Random(3)
    blocks = 2 * SAMPLE_BLOCKS * SAMPLE_OF
    image = rng.randbytes(blocks * BLOCK)
    point = pusher.push(image)
    client = Client(bench)
    pulled(client, point, tmp_path / "disk", rng.randbytes(len(image)))
    assert (tmp_path / "disk").read_bytes() == image
    looked_at = sum(len(decoded.indices) for request in client.asked("pages") for decoded in decode(request.answer))
    assert SAMPLE_BLOCKS <= looked_at <= 2 * SAMPLE_BLOCKS

    client = Client(bench)  # of much that changed a little the pages come, and not only those of the sample
    pulled(client, point, tmp_path / "disk", with_pages(image, *((block, 3) for block in range(blocks))))
    assert (tmp_path / "disk").read_bytes() == image
    assert client.wire.received_bytes < 1.1 * blocks * PAGE_BYTES


@given(data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_the_disk_holds_it_becomes_the_point(
    bench: Bench, pusher: Pusher, tmp_path: Path, data: st.DataObject
) -> None:
    rng = random.Random(data.draw(st.integers(0, 1 << 30)))
    size_bytes = data.draw(st.integers(1, 5 * BLOCK // 512)) * 512
    kinds: list[Callable[[int], bytes]] = [rng.randbytes, bytes, lambda length: b"\x05" * length]

    def disk() -> bytearray:
        made = bytearray()
        while len(made) < size_bytes:
            made += rng.choice(kinds)(rng.choice([512, PAGE_BYTES, BLOCK]))
        return made[:size_bytes]

    image = disk()
    held = disk() if data.draw(st.booleans()) else bytearray(image)
    for _ in range(data.draw(st.integers(0, 8))):
        at, length = rng.randrange(size_bytes), rng.choice([1, 512, PAGE_BYTES, BLOCK])
        held[at : at + length] = rng.choice(kinds)(len(held[at : at + length]))
    point = pusher.push(bytes(image))
    client = Client(bench, rate=data.draw(st.sampled_from([None, 1e5, 1e9])))
    pulled(client, point, tmp_path / "disk", held)
    assert (tmp_path / "disk").read_bytes() == image


def test_a_page_that_has_the_sum_of_the_one_held_is_noticed_and_its_block_comes_whole(
    bench: Bench, pusher: Pusher, tmp_path: Path, image: bytes
) -> None:
    rng = random.Random(4)
    point = pusher.push(image)
    stale = with_pages(image, (3, 1), (5, 0), (7, 2))
    for block in (3, 9):  # 3: one page more differs than the sums say; 9: none seems to
        at = block * BLOCK + 4 * PAGE_BYTES
        stale[at : at + PAGE_BYTES] = colliding(image[at : at + PAGE_BYTES], rng)
    client = Client(bench)
    pulled(client, point, tmp_path / "disk", stale)
    assert (tmp_path / "disk").read_bytes() == image
    assert [frame.indices for frame in decode(client.asked("pages")[0].answer)] == [(9,), (3, 5, 7)]
    assert [frame.indices for frame in decode(client.requests[-1].answer)] == [(3,)]


def test_sums_of_something_else_cost_bytes_and_nothing_more(
    bench: Bench, pusher: Pusher, tmp_path: Path, image: bytes
) -> None:
    point = pusher.push(image)
    stale = with_pages(image, (0, 0), (1, 15), (40, 2))

    def garbled(what: str, body: bytes) -> bytes:
        if what != "pages":
            return body
        at = frame_bytes(body[:20])
        return body[:at] + random.Random(5).randbytes(len(body) - at - 8) + body[-8:]

    client = Client(bench, alter_body=garbled)
    pulled(client, point, tmp_path / "disk", stale)
    assert (tmp_path / "disk").read_bytes() == image


def test_answers_have_a_limit_and_go_on_where_they_ended(
    bench: Bench, pusher: Pusher, tmp_path: Path, image: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = pusher.push(image)
    stale = with_pages(image, *((block, page) for block in range(30) for page in range(1 + block % PAGES)))
    for name, value, least in (("ANSWER_BYTES", 2 * BLOCK, 8), ("LOOKED_AT_BYTES", 4 * BLOCK, 8)):
        with monkeypatch.context() as patch:
            patch.setattr(pull_module, name, value)
            client = Client(bench)
            pulled(client, point, tmp_path / "disk", stale)
        assert (tmp_path / "disk").read_bytes() == image
        answers = [list(decode(request.answer)) for request in client.asked("pages")]
        assert len(answers) >= least
        for frames in answers:
            assert sum(frame.plain_bytes for frame in frames) <= 2 * BLOCK + 100 or name != "ANSWER_BYTES"
            assert (frames[-1].kind is Kind.UNTIL) is (frames is not answers[-1])


def test_a_service_of_a_version_before_pages_is_pulled_from_as_well(
    bench: Bench, pusher: Pusher, tmp_path: Path, image: bytes
) -> None:
    """It brings whole blocks whatever the query says, and refuses brief offers."""
    point = pusher.push(image)
    reader = PointReader(bench.archive)
    manifest = bench.archive.manifest(SERVER.id, point.id)
    client = Client(
        bench,
        alter=lambda what, body, answer: answer_of(reader.differing(manifest, 0, body)),
        knows_brief=False,
    )
    pulled(client, point, tmp_path / "disk", with_pages(image, (0, 0), (40, 1)))
    assert (tmp_path / "disk").read_bytes() == image
    assert not client.asked("pages")


def test_a_digest_that_only_begins_like_the_points_is_noticed_by_the_root(
    bench: Bench, pusher: Pusher, tmp_path: Path, image: bytes
) -> None:
    """Nobody finds such a block in a lifetime: here the offer lies."""
    point = pusher.push(image)
    digests = digests_of(image)
    lie = encode_brief(0, digests.run(range(digests.grid.count)))
    client = Client(bench, alter_body=lambda what, body: lie if what == "diff" and len(body) == len(lie) else body)
    pulled(client, point, tmp_path / "disk", with_pages(image, (7, 3)))
    assert (tmp_path / "disk").read_bytes() == image
    assert [request.what for request in client.requests] == ["diff", "diff", "pages"]


def test_a_brief_offer_is_answered_like_a_whole_one(bench: Bench, pusher: Pusher, image: bytes) -> None:
    image = bytes(BLOCK) + image[BLOCK:]
    manifest = bench.archive.manifest(SERVER.id, pusher.push(image).id)
    reader = PointReader(bench.archive)
    held = digests_of(image)
    for index, digest in ((0, b"x" * 32), (5, ZERO_DIGEST), (6, b"y" * 32), (40, b"z" * 32)):
        held[index] = digest
    for blocks in (range(41), range(5, 7), range(1, 5), range(0)):
        for by_name in (True, False):
            brief, whole = (
                answer_of(reader.differing(manifest, 0, body, 0, by_name=by_name, brief=at == 0))
                for at, body in enumerate(
                    (encode_brief(blocks.start, held.run(blocks)), encode_offer(blocks, held.run(blocks)))
                )
            )
            assert brief == whole
    for body in (b"", bytes(7), bytes(9), encode_brief(41, bytes(32)), encode_brief((1 << 64) - 1, bytes(32))):
        with pytest.raises(BadFrame):
            reader.differing(manifest, 0, body, brief=True)


def patch_of(block: bytes, index: int, pages: list[int]) -> bytes:
    grid = BlockGrid(41 * BLOCK, BLOCK)
    return b"".join(encode_patches([Patch.of(index, block_digest(block), memoryview(block), pages)], grid, 1))


@pytest.mark.parametrize(
    ("to", "answer", "error"),
    [
        ("diff", encode_until(0), BadFrame),
        ("diff", encode_offer([41], bytes(32)), BadFrame),
        ("diff", encode_offer([3], bytes(32))[:-1], BadFrame),
        ("diff", encode_blocks([3], bytes(31) + b"\1", [bytes(BLOCK)]), DigestMismatch),
        ("diff", encode_blocks([3], ZERO_DIGEST, [bytes(BLOCK)]), TargetError),  # proven, and not the point's
        ("pages", encode_until(3), BadFrame),
        ("pages", encode_until(4), BadFrame),
        ("pages", encode_zeros([4]), BadFrame),
        ("pages", patch_of(b"x" * BLOCK, 4, [1]), BadFrame),
        ("pages", b"".join(patches_frame([3], bytes(32), b"\1\0" + bytes(PAGE_BYTES - 1))), BadFrame),
        ("pages", b"".join(patches_frame([3], bytes(32), b"\1\0" + bytes(PAGE_BYTES + 1))), BadFrame),
        ("pages", patch_of(b"x" * BLOCK, 3, list(range(PAGES))), TargetError),
        ("pages", b"", TargetError),
    ],
)
def test_answers_that_are_not_right_end_the_pull_with_an_error(
    bench: Bench, pusher: Pusher, tmp_path: Path, image: bytes, to: str, answer: bytes, error: type[UnderstudyError]
) -> None:
    point = pusher.push(image)
    client = Client(bench, alter=lambda what, body, good: answer if what == to else good)
    stale = with_pages(image, (3, 0), (3, 9))
    with pytest.raises(error):
        pulled(client, point, tmp_path / "disk", stale)
    there = (tmp_path / "disk").read_bytes()
    assert there[: 3 * BLOCK] == image[: 3 * BLOCK]
    assert there[4 * BLOCK :] == image[4 * BLOCK :]


def test_a_patch_whose_digest_is_never_met_leaves_the_block_as_it_was(
    bench: Bench, pusher: Pusher, tmp_path: Path, image: bytes
) -> None:
    point = pusher.push(image)
    stale = with_pages(image, (3, 0), (5, 0))

    def altered(what: str, body: bytes, answer: bytes) -> bytes:
        if what != "pages":
            return answer
        (frame,) = decode(answer)
        patches = list(read_patches(frame, BlockGrid(len(image), BLOCK)))
        wrong = Patch(patches[0].index, bytes(31) + b"\1", patches[0].pages, patches[0].contents)
        return b"".join(encode_patches([wrong, *patches[1:]], BlockGrid(len(image), BLOCK), 1))

    client = Client(bench, alter=altered)
    pulled(client, point, tmp_path / "disk", stale)
    assert (tmp_path / "disk").read_bytes() == image
    assert [frame.indices for frame in decode(client.requests[-1].answer)] == [(3,)], "it came whole"
