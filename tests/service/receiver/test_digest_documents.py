"""A point's digests are stored as what changed, and come back exactly, whatever became of the points before."""

import errno
import os
import random
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.protocol.digests import DIGEST_BYTES, ZERO_DIGEST, DigestMap
from agent.protocol.errors import NotFound, StorageError
from agent.protocol.grid import BlockGrid
from agent.protocol.messages import BeginRequest, CommitRequest, VolumeDeclaration
from recovery.sites.contract import VolumeKey
from service.receiver import digest_documents, points
from service.receiver.digest_documents import DigestDocuments
from tests.service.receiver.pushing import BLOCK, SERVER, Bench, Pusher, changed, digests_of, make_image


class Shelf:
    """Documents in memory."""

    def __init__(self) -> None:
        self.documents: dict[str, bytes] = {}

    def write_document(self, server_id: str, name: str, content: bytes) -> None:
        self.documents[name] = bytes(content)

    def read_document(self, server_id: str, name: str) -> bytes:
        if name not in self.documents:
            raise NotFound(name)
        return self.documents[name]

    def delete_document(self, server_id: str, name: str) -> None:
        self.documents.pop(name, None)


def a_map(grid: BlockGrid, entries: dict[int, bytes]) -> DigestMap:
    digests = DigestMap(grid)
    for index, digest in entries.items():
        digests[index] = digest
    return digests


def everything(digests: DigestMap) -> bytes:
    return digests.run(range(digests.grid.count))


digests_in_use = st.sampled_from([ZERO_DIGEST, *(bytes([value]) * DIGEST_BYTES for value in range(1, 5))])


@settings(max_examples=60)
@given(
    count=st.integers(1, 3000),
    steps=st.lists(st.dictionaries(st.integers(0, 2999), digests_in_use, max_size=40), min_size=1, max_size=4),
    part_bytes=st.sampled_from([64, 500, digest_documents.PART_BYTES]),
)
def test_a_chain_of_documents_gives_every_map_that_was_stored(
    count: int, steps: list[dict[int, bytes]], part_bytes: int
) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(digest_documents, "PART_BYTES", part_bytes)
        documents = DigestDocuments(Shelf(), None)  # type: ignore[arg-type]
        grid = BlockGrid(count * 4096, 4096)
        base, chain, entries = None, [], dict[int, bytes]()
        stored = []
        for number, step in enumerate(steps):
            entries |= {index: digest for index, digest in step.items() if index < count}
            digests = a_map(grid, entries)
            if documents.write("s", f"pt-{number}", 0, digests, base):
                chain = [*chain, f"pt-{number}"]
            stored.append((chain, everything(digests)))
            base = digests
        for chain, wanted in stored:
            found = documents.read("s", 0, grid, chain)
            assert everything(found) == wanted
            found.close()


def test_a_dense_map_is_stored_whole_and_what_becomes_zero_is_told() -> None:
    shelf = Shelf()
    documents = DigestDocuments(shelf, None)  # type: ignore[arg-type]
    grid = BlockGrid(2500 * 4096, 4096)
    dense = a_map(grid, {index: bytes([index % 255 + 1]) * DIGEST_BYTES for index in range(2500)})
    assert documents.write("s", "a", 0, dense, None)
    assert documents.write("s", "b", 0, DigestMap(grid), dense)
    assert len(shelf.documents["b.0.digests"]) < 200, "zeros need no digests"
    assert everything(documents.read("s", 0, grid, ["a"])) == everything(dense)
    assert everything(documents.read("s", 0, grid, ["a", "b"])) == bytes(2500 * DIGEST_BYTES)
    assert not documents.write("s", "c", 0, dense, dense), "nothing changed, and nothing is stored"


def test_a_document_written_again_leaves_nothing_of_a_longer_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit for which the site had no room is tried again, with other content."""
    monkeypatch.setattr(digest_documents, "PART_BYTES", 64)
    shelf = Shelf()
    documents = DigestDocuments(shelf, None)  # type: ignore[arg-type]
    grid = BlockGrid(5000 * 4096, 4096)
    documents.write("s", "a", 0, a_map(grid, dict.fromkeys(range(0, 5000, 500), b"x" * DIGEST_BYTES)), None)
    assert len(shelf.documents) == 5
    small = a_map(grid, {7: b"y" * DIGEST_BYTES})
    documents.write("s", "a", 0, small, None)
    assert everything(documents.read("s", 0, grid, ["a"])) == everything(small)


def test_every_flipped_bit_of_a_document_is_found() -> None:
    shelf = Shelf()
    documents = DigestDocuments(shelf, None)  # type: ignore[arg-type]
    grid = BlockGrid(64 * 4096, 4096)
    documents.write("s", "a", 0, a_map(grid, {3: b"x" * DIGEST_BYTES}), None)
    sound = shelf.documents["a.0.digests"]
    for at in range(len(sound)):
        shelf.documents["a.0.digests"] = sound[:at] + bytes([sound[at] ^ 4]) + sound[at + 1 :]
        with pytest.raises(StorageError, match=r"a\.0\.digests is damaged"):
            documents.read("s", 0, grid, ["a"])
    for content in (b"", sound[:50], sound[:-1]):
        shelf.documents["a.0.digests"] = content
        with pytest.raises(StorageError, match="damaged"):
            documents.read("s", 0, grid, ["a"])
    with pytest.raises(StorageError, match=r"b\.0\.digests is missing"):
        documents.read("s", 0, grid, ["b"])


def test_a_rewritten_document_stands_for_itself_and_for_the_points_after_it() -> None:
    documents = DigestDocuments(Shelf(), None)  # type: ignore[arg-type]
    grid = BlockGrid(3000 * 4096, 4096)
    first = a_map(grid, {1: b"a" * DIGEST_BYTES, 2000: b"b" * DIGEST_BYTES})
    second = a_map(grid, {2000: b"c" * DIGEST_BYTES})
    documents.write("s", "a", 0, first, None)
    documents.write("s", "b", 0, second, first)
    documents.rewrite("s", "b", 0, second)
    for chain in (["b"], ["a", "b"]):
        assert everything(documents.read("s", 0, grid, chain)) == everything(second)


def test_on_a_full_disk_a_map_is_put_together_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Points are pulled and proven then as ever."""
    documents = DigestDocuments(Shelf(), None)  # type: ignore[arg-type]
    grid = BlockGrid(3000 * 4096, 4096)
    digests = a_map(grid, {1: b"a" * DIGEST_BYTES, 2000: b"b" * DIGEST_BYTES})
    documents.write("s", "a", 0, digests, None)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    assert everything(documents.read("s", 0, grid, ["a"])) == everything(digests)


def test_a_point_stores_as_many_digests_as_it_changed(bench: Bench, pusher: Pusher) -> None:
    image = make_image(400, seed=1)
    pusher.push(image)
    second = pusher.push(changed(image, seed=2, blocks=2))
    third = pusher.push(changed(image, seed=2, blocks=2))
    assert len(bench.site.read_document(SERVER.id, f"{second.id}.0.digests")) < 400
    assert not [name for _, name in bench.site.documents() if name == f"{third.id}.0.digests"]


def test_points_stay_provable_while_those_before_them_go_and_their_documents_go_in_the_end(
    bench: Bench, pusher: Pusher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(points, "MAX_CHAIN", 3)
    image, made = make_image(20, seed=0), []
    for seed in range(10):
        image = changed(image, seed)
        made.append((pusher.push(image), image))
        bench.retain(keep=2)
        for point, content in made[-2:]:
            manifest = bench.archive.manifest(SERVER.id, point.id)
            assert all(len(chain) <= 3 for chain in manifest.digests)
            digests = bench.archive.digests(manifest, 0)
            assert everything(digests) == everything(digests_of(content))
            digests.close()
    documents = [name for _, name in bench.site.documents() if name.endswith(".digests")]
    assert len(documents) <= 5, "of ten points, those are left that the last two need"
    bench.restart()
    assert bench.verify(bench.archive.manifest(SERVER.id, made[-1][0].id)) == len(image)


def test_digests_on_a_damaged_chain_are_stored_whole_by_the_next_point(bench: Bench, pusher: Pusher) -> None:
    image = make_image(8, seed=1)
    first = pusher.push(image)
    second = changed(image, seed=2)
    begun = pusher.begin(second)
    bench.site.write_document(SERVER.id, f"{first.id}.0.digests", b"rot")
    pusher.send(begun.session, second, pusher.offer(begun.session, second))
    point = pusher.commit(begun.session, second)
    manifest = bench.archive.manifest(SERVER.id, point.id)
    assert manifest.digests == [[point.id]]
    assert bench.verify(manifest) == len(second)


def test_damaged_digests_can_be_stored_anew(bench: Bench, pusher: Pusher) -> None:
    images = [make_image(8, seed=1)]
    for seed in (2, 3):
        images.append(changed(images[-1], seed))
    made = [pusher.push(image) for image in images]
    bench.site.write_document(SERVER.id, f"{made[0].id}.0.digests", b"rot")
    for point in made:
        with pytest.raises(StorageError):
            bench.archive.digests(bench.archive.manifest(SERVER.id, point.id), 0)
    for number in (1, 0):
        manifest = bench.archive.manifest(SERVER.id, made[number].id)
        bench.archive.write_digests(manifest, 0, digests_of(images[number]))
    for point, image in zip(made, images, strict=True):
        assert bench.verify(bench.archive.manifest(SERVER.id, point.id)) == len(image)
    bench.retain(keep=1)
    assert bench.verify(bench.archive.manifest(SERVER.id, made[2].id)) == len(images[2])


@pytest.mark.parametrize("size_tib", [1, pytest.param(4, marks=pytest.mark.long)])
def test_a_huge_disk_is_committed_without_holding_its_digests_in_memory(bench: Bench, size_tib: int) -> None:
    """A TiB in 64 KiB blocks has 512 MiB of digests."""
    size_bytes = size_tib << 40
    grid = BlockGrid(size_bytes, BLOCK)
    volume = VolumeDeclaration(path="/dev/vda", size_bytes=size_bytes, block_bytes=BLOCK)
    anonymous_before = anonymous_bytes()
    tracemalloc.start()
    try:
        begun = bench.receiver.begin(SERVER.id, lambda: SERVER, BeginRequest(machine_id="m", volumes=[volume]))
        head = bench.receiver.sessions.get(begun.session, SERVER.id).heads[0]
        rng = random.Random(1)
        for _ in range(50):
            index = rng.randrange(grid.count)
            head.put(index, rng.randbytes(BLOCK))
        request = CommitRequest(
            roots=[head.digests.root().hex()], consistency="crash", completeness="scanned", age_seconds=0.0
        )
        point = bench.receiver.commit(SERVER.id, begun.session, lambda _: SERVER, request)
        digests = bench.archive.digests(bench.archive.manifest(SERVER.id, point.id), 0)
        digests.close()
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 64 << 20
    assert anonymous_bytes() - anonymous_before < 64 << 20
    assert sum(len(bench.site.read_document(*name)) for name in bench.site.documents()) < 64 << 10
    assert bench.site.snapshots(VolumeKey(SERVER.id, 0)) == [point.id]


def anonymous_bytes() -> int:
    """Of this process's memory, what no file stands behind."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no RssAnon")
