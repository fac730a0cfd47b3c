"""One bit flips anywhere in what the site and the database keep: it is named, or nothing that is read has changed; and
what is done then (a push, retention) makes nothing worse: what was right stays right, and what is wrong is named."""

from __future__ import annotations

import contextlib
import random
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.protocol.errors import UnderstudyError
from tests.seeds import seeded
from tests.service.receiver.pushing import BLOCK, SERVER, Bench, Pusher, changed, make_image
from tests.service.receiver.verify.rot import KEY, flip, verifier_of

FLIPS = 8
CLUSTER = 65536
STRICT = ("data", "document")
"""Where every bit means something."""

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]


class Estate:
    """Points p0 to p3 of a volume that shrank and grew, and a working state, as a service left them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        bench = Bench(folder)
        self.key = bench.key
        pusher, image = Pusher(bench), make_image(20, 1, 1536)
        self.held: dict[str, bytes] = {}
        for number in range(4):
            self.held[pusher.push(image).id] = image
            image = changed(image, number + 10, 4)
            if number == 1:
                image = image[: -3 * BLOCK]
            if number == 2:
                image += random.Random(9).randbytes(5 * BLOCK)
        self.next = image
        session = pusher.begin(image).session
        pusher.send(session, image, pusher.offer(session, image)[:3])
        bench.receiver.sessions.all()[0].heads[0].flush()
        bench.site.close()

    def copied(self, folder: Path) -> Bench:
        """A copy as a bench that has not been started yet."""
        shutil.copytree(self.folder, folder)
        bench = Bench.__new__(Bench)
        bench.folder, bench.key = folder, self.key
        return bench


@pytest.fixture(scope="module")
def estate(tmp_path_factory: pytest.TempPathFactory) -> Estate:
    return Estate(tmp_path_factory.mktemp("estate"))


def regions(path: Path) -> dict[str, list[tuple[int, int]]]:
    """Where a qcow2 file has what: (offset, length) of each part."""
    content = path.read_bytes()
    name_at, name_bytes = struct.unpack_from(">QI", content, 8)
    size, _, level_1_count, level_1, counts, _ = struct.unpack_from(">QIIQQI", content, 24)
    tables = [struct.unpack_from(">Q", content, level_1 + 8 * n)[0] & 0x00FFFFFFFFFFFE00 for n in range(level_1_count)]
    (counts_block,) = struct.unpack_from(">Q", content, counts)
    clusters = -(-len(content) // CLUSTER)
    return {
        "header": [(0, max(104, name_at + name_bytes))],
        "level 1": [(level_1, 8 * level_1_count)],
        "level 2": [(at, 8 * -(-size // CLUSTER)) for at in tables if at],
        "refcounts": [(counts, 16), (counts_block, 2 * (clusters + 2))],
    }


def place(bench: Bench, kind: str, rng: random.Random, estate: Estate) -> tuple[Path, int]:
    """A byte of this kind: its file, and where in it."""
    server = bench.folder / "site" / SERVER.id
    if kind == "row":
        path = bench.folder / "db.sqlite"
        return path, path.read_bytes().rfind(rng.choice(list(estate.held)).encode()) + rng.randrange(200)
    if kind == "document":
        path = rng.choice(sorted((server / "documents").iterdir()))
        return path, rng.randrange(path.stat().st_size)
    files = sorted((server / "volume-0").glob("*.qcow2"))
    while True:
        path = rng.choice(files)
        if kind == "data":  # of a block that a point holds, wherever it lies
            image = rng.choice(list(estate.held.values()))
            at = path.read_bytes().find(image[(block := rng.randrange(len(image) // BLOCK)) * BLOCK :][:BLOCK])
            if any(image[block * BLOCK :][:BLOCK]) and at >= 0 and path.name != "head.qcow2":
                return path, at + rng.randrange(BLOCK)
        elif parts := regions(path)[kind]:
            offset, length = rng.choice(parts)
            return path, min(offset + rng.randrange(length), path.stat().st_size - 1)


def holds(bench: Bench, point: str, image: bytes) -> bool:
    try:
        with contextlib.closing(bench.site.open_snapshot(KEY, point)) as io:
            return bytes(io.read(0, io.size_bytes)) == image
    except UnderstudyError:
        return False


def named(bench: Bench) -> set[str]:
    """The points that verification finds something about."""
    verifier, found = verifier_of(bench), set()
    for server_id, point in verifier.records.known("default"):
        try:
            if verifier.verify(server_id, point).findings:
                found.add(point)
        except UnderstudyError:
            found.add(point)
    return found


@pytest.mark.parametrize("kind", ["header", "level 1", "level 2", "refcounts", "data", "document", "row"])
def test_a_flipped_bit_is_named_or_means_nothing_and_does_no_more_harm(
    estate: Estate, tmp_path: Path, kind: str
) -> None:
    rng = seeded()
    for number in range(FLIPS):
        bench = estate.copied(tmp_path / str(number))
        path, at = place(bench, kind, rng, estate)
        bit = rng.randrange(8)
        flip(path, at, bit)
        print(f"{number}: {path.name} byte {at} bit {bit}")
        with started(bench):
            check(bench, estate, must_be_named=kind in STRICT and path.name != "head.qcow2")
        shutil.rmtree(bench.folder)


@contextlib.contextmanager
def started(bench: Bench) -> Iterator[None]:
    bench.start()
    try:
        yield
    finally:
        bench.stop()


def check(bench: Bench, estate: Estate, *, must_be_named: bool) -> None:
    found = named(bench)
    right = {point for point, image in estate.held.items() if holds(bench, point, image)}
    assert estate.held.keys() - right <= found
    assert found or not must_be_named
    point = None
    with contextlib.suppress(UnderstudyError):
        point = Pusher(bench).push(estate.next).id
    newest = list(estate.held)[-1]
    new_is_right = point is not None and holds(bench, point, estate.next)
    assert new_is_right or point is None or newest not in right, "it rotted while it was made"
    with contextlib.suppress(UnderstudyError):
        bench.retain(keep=2)
    left = named(bench)
    for older in (older for older in estate.held if bench.archive.exists(SERVER.id, older)):
        still_right = holds(bench, older, estate.held[older])
        assert still_right or older in left
        assert still_right or older not in right, "retention did harm"
    if point is not None:
        assert holds(bench, point, estate.next) == new_is_right
        assert new_is_right or point in left
