"""Points keep what they had, say when they do not, and go when there are too many."""

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agent.protocol.digests import ZERO_DIGEST
from agent.protocol.errors import StorageError
from agent.protocol.frames import Kind, decode, encode_offer
from agent.protocol.grid import BlockGrid
from recovery.sites.contract import VolumeKey
from service.receiver.manifest import sealed, unsealed
from service.receiver.pull import PointReader
from service.receiver.retention import superfluous
from tests.service.receiver.pushing import BLOCK, SERVER, Bench, Pusher, answer_of, changed, digests_of, make_image


def series(pusher: Pusher, count: int) -> list[tuple[str, bytes]]:
    image, made = make_image(20, seed=0), []
    for seed in range(count):
        image = changed(image, seed)
        made.append((pusher.push(image).id, image))
    return made


def damage(path: str) -> None:
    """Flip a bit in the last data cluster of a qcow2 file."""
    Path(path).chmod(0o600)
    with open(path, "r+b") as file:
        file.seek(-4096, 2)
        at = file.tell()
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def test_a_sound_point_verifies(bench: Bench, pusher: Pusher) -> None:
    point = pusher.push(make_image(20, seed=1))
    assert bench.verify(bench.archive.manifest(SERVER.id, point.id)) == 20 * BLOCK


def test_a_rotten_block_is_named(bench: Bench, pusher: Pusher) -> None:
    point = pusher.push(make_image(3, seed=1) + b"\x07" * BLOCK)
    damage(bench.site.snapshot_location(VolumeKey(SERVER.id, 0), point.id))
    with pytest.raises(StorageError, match=r"block \d+"):
        bench.verify(bench.archive.manifest(SERVER.id, point.id))


def test_an_altered_manifest_is_found(bench: Bench, pusher: Pusher) -> None:
    point = pusher.push(make_image(3, seed=1))
    name = f"{point.id}.json"
    outer = json.loads(bench.site.read_document(SERVER.id, name))
    outer["manifest"] = outer["manifest"].replace("web01", "web02")
    bench.site.write_document(SERVER.id, name, json.dumps(outer).encode())
    with pytest.raises(StorageError, match="signature"):
        bench.archive.manifest(SERVER.id, point.id)


def test_damaged_digests_are_found(bench: Bench, pusher: Pusher) -> None:
    point = pusher.push(make_image(3, seed=1))
    name = f"{point.id}.0.digests"
    document = bytearray(bench.site.read_document(SERVER.id, name))
    document[40] ^= 1
    bench.site.write_document(SERVER.id, name, bytes(document))
    with pytest.raises(StorageError, match="digests is damaged"):
        bench.verify(bench.archive.manifest(SERVER.id, point.id))


def test_a_manifest_signed_by_another_service_is_refused(bench: Bench, pusher: Pusher) -> None:
    point = pusher.push(make_image(3, seed=1))
    manifest = bench.archive.manifest(SERVER.id, point.id)
    with pytest.raises(StorageError):
        unsealed(sealed(manifest, Ed25519PrivateKey.generate()), bench.key.public_key())


def test_a_manifest_in_the_place_of_another_is_not_used(bench: Bench, pusher: Pusher) -> None:
    made = series(pusher, 3)
    replayed = bench.site.read_document(SERVER.id, f"{made[0][0]}.json")
    bench.site.write_document(SERVER.id, f"{made[1][0]}.json", replayed)
    bench.restart()
    assert [point.id for point in bench.rows.newest_first(SERVER.id)] == [made[2][0], made[0][0]]
    with pytest.raises(StorageError, match=made[0][0]):
        bench.archive.manifest(SERVER.id, made[1][0])


def test_a_pull_gets_exactly_the_blocks_that_differ(bench: Bench, pusher: Pusher) -> None:
    old, new = make_image(20, seed=0), changed(make_image(20, seed=0), seed=1)
    point = pusher.push(new)
    reader = PointReader(bench.archive)
    manifest = bench.archive.manifest(SERVER.id, point.id)
    body = answer_of(reader.differing(manifest, 0, encode_offer(list(range(20)), digests_of(old).run(range(20)))))
    grid, target, named = BlockGrid(20 * BLOCK), bytearray(old), set()
    for frame in decode(body):
        named |= set(frame.indices)
        payload = frame.verified(grid) if frame.kind is Kind.BLOCKS else bytes(BLOCK * len(frame.indices))
        for position, index in enumerate(frame.indices):
            target[index * BLOCK : (index + 1) * BLOCK] = payload[position * BLOCK : (position + 1) * BLOCK]
    assert target == new
    assert named == {i for i in range(20) if old[i * BLOCK : (i + 1) * BLOCK] != new[i * BLOCK : (i + 1) * BLOCK]}
    assert reader.differing(manifest, 0, encode_offer(list(range(20)), digests_of(new).run(range(20)))).body() == []
    reader.close()


def test_a_rotten_block_is_not_handed_out(bench: Bench, pusher: Pusher) -> None:
    point = pusher.push(make_image(3, seed=1) + b"\x07" * BLOCK)
    damage(bench.site.snapshot_location(VolumeKey(SERVER.id, 0), point.id))
    reader = PointReader(bench.archive)
    with pytest.raises(StorageError, match="damaged"):
        reader.differing(bench.archive.manifest(SERVER.id, point.id), 0, encode_offer(list(range(4)), ZERO_DIGEST * 4))
    reader.close()


@pytest.mark.parametrize(
    ("keep", "goes"), [(48, []), (3, []), (2, ["a"]), (1, ["a", "b"]), (0, ["a", "b"]), (-1, ["a", "b"])]
)
def test_the_oldest_beyond_the_number_go_but_never_the_newest(keep: int, goes: list[str]) -> None:
    assert superfluous(["c", "b", "a"], keep) == goes


def test_retention_leaves_the_others_as_they_were(bench: Bench, pusher: Pusher) -> None:
    made = series(pusher, 6)
    assert bench.retain(keep=3) == [point for point, _ in made[:3]]
    assert [point.id for point in bench.rows.newest_first(SERVER.id)] == [point for point, _ in made[:2:-1]]
    for point, image in made[3:]:
        assert bench.content(point) == image
        manifest = bench.archive.manifest(SERVER.id, point)
        assert bench.verify(manifest) == len(image), "its digests are told by documents of points that are gone"
    names = {name.split(".")[0] for _, name in bench.site.documents() if not name.endswith(".digests")}
    assert names == {point for point, _ in made[3:]}


def test_retention_waits_while_a_point_is_read(bench: Bench, pusher: Pusher) -> None:
    made = series(pusher, 3)
    reading = bench.archive.open(bench.archive.manifest(SERVER.id, made[0][0]), 0)
    assert bench.retain(keep=1) == []
    assert bench.archive.exists(SERVER.id, made[0][0])
    reading.close()
    assert len(bench.retain(keep=1)) == 2


def test_a_removal_cut_by_a_crash_is_carried_on_at_the_next_start(
    bench: Bench, pusher: Pusher, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = series(pusher, 3)

    def power_cut(*arguments: object) -> None:
        raise StorageError("the power went")

    monkeypatch.setattr(bench.site, "delete_snapshot", power_cut)
    assert bench.retain(keep=2) == []
    monkeypatch.undo()
    bench.restart()
    assert [point.id for point in bench.rows.newest_first(SERVER.id)] == [made[2][0], made[1][0]]
    assert bench.site.snapshots(VolumeKey(SERVER.id, 0)) == [made[1][0], made[2][0]]
    assert bench.content(made[1][0]) == made[1][1]
