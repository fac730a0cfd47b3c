"""A flipped bit is found wherever it is, and named: which part, which file, which block, which points."""

from __future__ import annotations

import random
import subprocess

import pytest
from sqlalchemy import text

from agent.protocol.errors import NotFound, TransportError
from service.receiver.verify.findings import Part
from service.receiver.verify.readback import Stop
from tests.seeds import seeded
from tests.service.receiver.pushing import BLOCK, SERVER, Bench, Pusher, changed, make_image
from tests.service.receiver.verify.rot import document_of, file_of, flip, place_of, verifier_of


def image_of(seed: int, blocks: int = 16) -> bytes:
    rng = random.Random(seed)
    return b"".join(rng.randbytes(BLOCK) if rng.random() < 0.7 else bytes(BLOCK) for _ in range(blocks - 1)) + (
        rng.randbytes(BLOCK)
    )


def with_block(image: bytes, block: int, content: bytes) -> bytes:
    return image[: block * BLOCK] + content + image[(block + 1) * BLOCK :]


def block_of(image: bytes, block: int) -> bytes:
    return image[block * BLOCK : (block + 1) * BLOCK]


def test_a_sound_point_is_marked_as_verified_and_holes_are_not_read(bench: Bench, pusher: Pusher) -> None:
    image = bytes(32 * BLOCK) + image_of(1)
    point = pusher.push(image)
    reached = []
    verdict = verifier_of(bench).verify(SERVER.id, point.id, progress=lambda done, total: reached.append((done, total)))
    assert (verdict.findings, verdict.sound) == ([], True)
    assert verdict.read_bytes == sum(block_of(image, b) != bytes(BLOCK) for b in range(48)) * BLOCK
    assert reached[-1] == (len(image), len(image))
    assert verdict.verified_at
    assert bench.rows.get(point.id).point.verified_at == verdict.verified_at


def test_a_rotten_block_is_named_with_the_file_it_lies_in_and_all_points_that_show_it(
    bench: Bench, pusher: Pusher
) -> None:
    image = image_of(1)
    first = pusher.push(image)
    second = pusher.push(with_block(image, 3, random.Random(2).randbytes(BLOCK)))
    third = pusher.push(with_block(image, 15, random.Random(3).randbytes(BLOCK)))
    path = file_of(bench, first.id)
    flip(path, place_of(path, block_of(image, 15)) + 5000)
    verifier = verifier_of(bench)
    for point_id in (first.id, second.id):
        (finding,) = verifier.verify(SERVER.id, point_id).findings
        assert (finding.part, finding.volume, finding.blocks) == (Part.DATA, 0, [(15, 15)])
        assert finding.where == str(path)
        assert finding.points == [first.id, second.id]
        assert "block 15" in finding.what
        assert "--heal" in finding.way_out
        assert bench.rows.get(point_id).point.verified_at is None
    assert verifier.verify(SERVER.id, third.id).findings == []


def test_a_block_that_came_up_where_a_hole_should_be_is_found(bench: Bench, pusher: Pusher) -> None:
    point = pusher.push(bytes(4 * BLOCK) + image_of(1))
    path = file_of(bench, point.id)
    path.chmod(0o600)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 7 65536 512", path], check=True, capture_output=True)
    (finding,) = verifier_of(bench).verify(SERVER.id, point.id).findings
    assert finding.blocks == [(1, 1)]


def test_a_flipped_bit_in_a_manifest_is_found_and_turned_back(bench: Bench, pusher: Pusher) -> None:
    rng = seeded()
    point = pusher.push(image_of(1, 4))
    path = document_of(bench, f"{point.id}.json")
    sound = path.read_bytes()
    verifier = verifier_of(bench)
    for _ in range(200):
        flip(path, rng.randrange(len(sound)), rng.randrange(8))
        (finding,) = verifier.verify(SERVER.id, point.id).findings
        assert finding.part is Part.MANIFEST
        assert path.name in finding.where
        damaged = path.read_bytes()
        path.write_bytes(sound)
    path.write_bytes(damaged)
    verdict = verifier.verify(SERVER.id, point.id, heal=True)
    assert verdict.sound
    assert path.read_bytes() == sound


def test_an_altered_manifest_is_not_signed_anew(bench: Bench, pusher: Pusher) -> None:
    point = pusher.push(image_of(1))
    path = document_of(bench, f"{point.id}.json")
    path.write_text(path.read_text().replace("web01", "web99"))
    altered = path.read_bytes()
    verdict = verifier_of(bench).verify(SERVER.id, point.id, heal=True)
    assert not verdict.sound
    assert "signature" in verdict.findings[0].what
    assert path.read_bytes() == altered


def test_a_manifest_in_the_place_of_another_is_found(bench: Bench, pusher: Pusher) -> None:
    first, second = pusher.push(image_of(1)), pusher.push(image_of(2))
    replayed = document_of(bench, f"{first.id}.json").read_bytes()
    document_of(bench, f"{second.id}.json").write_bytes(replayed)
    (finding,) = verifier_of(bench).verify(SERVER.id, second.id).findings
    assert finding.part is Part.MANIFEST


COLUMNS = {
    "tenant": "other",
    "server_name": "web02",
    "taken_at": "2021-01-01T00:00:00Z",
    "consistency": "application",
    "completeness": "tracked",
    "root": "00" * 32,
    "size_bytes": 4096,
    "sent_bytes": 9,
    "epoch": 7,
    "label": "another",
    "volumes": "[]",
    "parent": "pt-2222222222",
    "sequence": 0,
}


def test_a_row_that_says_something_else_is_found_and_written_anew(bench: Bench, pusher: Pusher) -> None:
    pusher.push(image_of(1, 4))
    point = pusher.push(image_of(2, 4))
    verifier = verifier_of(bench)
    with bench.rows._database.write() as connection:
        connection.execute(text("INSERT INTO tenants VALUES ('other', 0)"))
    for column, value in COLUMNS.items():
        with bench.rows._database.write() as connection:
            connection.execute(text(f"UPDATE points SET {column} = :v WHERE id = :id"), {"v": value, "id": point.id})
        assert verifier.records.locate(point.id, "default") == SERVER.id
        (finding,) = verifier.verify(SERVER.id, point.id).findings
        assert finding.part is Part.ROW, column
        assert point.id in finding.where
        assert verifier.verify(SERVER.id, point.id, heal=True).sound
        assert verifier.verify(SERVER.id, point.id).findings == []


def test_a_row_that_cannot_be_read_or_is_missing_is_written_anew(bench: Bench, pusher: Pusher) -> None:
    first, second = pusher.push(image_of(1)), pusher.push(image_of(2))
    verifier = verifier_of(bench)
    with bench.rows._database.write() as connection:
        connection.execute(text("UPDATE points SET volumes = 'no JSON' WHERE id = :id"), {"id": second.id})
        connection.execute(text("DELETE FROM points WHERE id = :id"), {"id": first.id})
    for point in (first, second):
        assert verifier.records.locate(point.id, "default") == SERVER.id
        (finding,) = verifier.verify(SERVER.id, point.id).findings
        assert finding.part is Part.ROW
    assert (SERVER.id, first.id) in verifier.records.known("default")
    assert verifier.verify(SERVER.id, second.id, heal=True).sound
    assert [point.id for point in bench.rows.newest_first(SERVER.id)] == [second.id, first.id]


def test_damaged_digests_are_named_and_measured_anew(bench: Bench, pusher: Pusher) -> None:
    image = image_of(1)
    first = pusher.push(image)
    second = pusher.push(with_block(image, 2, random.Random(5).randbytes(BLOCK)))
    path = document_of(bench, f"{first.id}.0.digests")
    sound = path.read_bytes()
    flip(path, seeded().randrange(len(sound)))
    verifier = verifier_of(bench)
    (finding,) = verifier.verify(SERVER.id, second.id).findings
    assert finding.part is Part.DIGESTS
    assert path.name in finding.what
    assert finding.points == [first.id, second.id]
    assert verifier.verify(SERVER.id, second.id, heal=True).sound
    assert path.read_bytes() == sound
    assert verifier.verify(SERVER.id, first.id).findings == []
    assert verifier.verify(SERVER.id, second.id).findings == []


def test_damage_to_what_qcow2_keeps_about_blocks_is_named_with_the_file(bench: Bench, pusher: Pusher) -> None:
    image = image_of(1)
    first, second = pusher.push(image), pusher.push(changed(image, 4))
    path = file_of(bench, first.id)
    l1_offset = int.from_bytes(path.read_bytes()[40:48], "big")
    l2_offset = int.from_bytes(path.read_bytes()[l1_offset : l1_offset + 8], "big") & 0xFFFFFFFFFFFE00
    flip(path, l2_offset + 15 * 8 + 3, 7)  # the place of block 15: far behind the file's end
    verifier = verifier_of(bench)
    for point in (first, second):
        findings = verifier.verify(SERVER.id, point.id).findings
        assert {finding.part for finding in findings} >= {Part.STRUCTURE}
        (structure,) = [finding for finding in findings if "qemu-img check" in finding.what]
        assert structure.where == str(path)
        assert structure.points == [first.id, second.id]
    before = path.read_bytes()
    assert not verifier.verify(SERVER.id, first.id, heal=True).sound
    assert path.read_bytes() == before, "nothing is written into a file whose own structures are wrong"


@pytest.mark.parametrize("flips", [8, pytest.param(200, marks=pytest.mark.long)])
def test_any_bit_of_a_point_file_is_found_or_does_no_harm(bench: Bench, pusher: Pusher, flips: int) -> None:
    """Some bits of a qcow2 file say nothing: then the point still reads as it was, and QEMU has no complaint."""
    rng = seeded()
    image = image_of(1, 8)
    first, second = pusher.push(image), pusher.push(changed(image, 4, 2))
    contents = {point.id: bench.content(point.id) for point in (first, second)}
    verifier = verifier_of(bench)
    for _ in range(flips):
        path = file_of(bench, rng.choice(list(contents)))
        sound = path.read_bytes()
        at = rng.choice([rng.randrange(len(sound)), rng.randrange(200), _structure(sound, rng)])
        bit = rng.randrange(8)
        flip(path, at, bit)
        for point_id, content in contents.items():
            if not verifier.verify(SERVER.id, point_id).findings:
                assert bench.content(point_id) == content, f"byte {at}, bit {bit} of {path}"
        path.chmod(0o600)
        path.write_bytes(sound)
        path.chmod(0o444)
    assert all(verifier.verify(SERVER.id, point_id).sound for point_id in contents)


def _structure(file: bytes, rng: random.Random) -> int:
    """Somewhere in the entries of the tables that find blocks."""
    l1_offset = int.from_bytes(file[40:48], "big")
    l2_offset = int.from_bytes(file[l1_offset : l1_offset + 8], "big") & 0xFFFFFFFFFFFE00
    return rng.choice([l1_offset + rng.randrange(8), l2_offset + rng.randrange(8 * 8)])


def test_a_file_that_is_gone_is_named(bench: Bench, pusher: Pusher) -> None:
    point = pusher.push(image_of(1))
    file_of(bench, point.id).unlink()
    (finding,) = verifier_of(bench).verify(SERVER.id, point.id).findings
    assert finding.part is Part.STRUCTURE
    assert "volume 0" in finding.what


def test_a_point_without_a_manifest_is_told(bench: Bench, pusher: Pusher) -> None:
    point = pusher.push(image_of(1))
    document_of(bench, f"{point.id}.json").unlink()
    verifier = verifier_of(bench)
    assert verifier.records.known("default") == [(SERVER.id, point.id)]
    (finding,) = verifier.verify(SERVER.id, point.id).findings
    assert finding.part is Part.MANIFEST
    with pytest.raises(NotFound):
        verifier.records.locate("pt-0000000000", "default")


def test_a_point_that_lost_its_manifest_is_told_of_by_its_files_also_after_a_start(
    bench: Bench, pusher: Pusher
) -> None:
    lost, newer = pusher.push(image_of(1)), pusher.push(image_of(2))
    document_of(bench, f"{lost.id}.json").unlink()
    bench.restart()
    assert bench.rows.listed() == {SERVER.id: [newer.id]}
    verifier = verifier_of(bench)
    assert set(verifier.records.known("default")) == {(SERVER.id, lost.id), (SERVER.id, newer.id)}
    assert verifier.records.known("other") == []
    assert verifier.records.locate(lost.id, "default") == SERVER.id
    (finding,) = verifier.verify(SERVER.id, lost.id, heal=True).findings
    assert (finding.part, finding.healed) == (Part.MANIFEST, "")
    assert "has files there" in finding.what


def test_a_row_of_which_the_site_has_nothing_is_removed(bench: Bench, pusher: Pusher) -> None:
    point = pusher.push(image_of(1))
    with bench.rows._database.write() as connection:
        connection.execute(text("UPDATE points SET id = 'pt-nothing22'"))
    verifier = verifier_of(bench)
    assert not verifier.verify(SERVER.id, "pt-nothing22").sound
    assert verifier.verify(SERVER.id, "pt-nothing22", heal=True).sound
    assert verifier.verify(SERVER.id, point.id, heal=True).sound
    assert bench.rows.listed() == {SERVER.id: [point.id]}


def test_points_that_are_being_made_or_removed_are_not_told_of(bench: Bench, pusher: Pusher) -> None:
    made = [pusher.push(image_of(seed)).id for seed in range(2)]
    for name, state in zip(made, ("pending", "deleting"), strict=True):
        document = document_of(bench, f"{name}.json")
        document.rename(document.with_name(f"{name}.{state}.json"))
    with bench.rows._database.write() as connection:
        connection.execute(text("DELETE FROM points"))
    assert verifier_of(bench).records.known("default") == []


def test_points_of_other_tenants_are_not_told_of(bench: Bench, pusher: Pusher) -> None:
    point = pusher.push(image_of(1))
    records = verifier_of(bench).records
    records.servers_of = lambda tenant: {SERVER.id} if tenant == "default" else set()
    assert records.known("other") == []
    with pytest.raises(NotFound):
        records.locate(point.id, "other")


def test_a_verification_that_nobody_waits_for_stops(bench: Bench, pusher: Pusher) -> None:
    point = pusher.push(make_image(64, seed=3))
    stop = Stop()
    stop.set()
    with pytest.raises(TransportError, match="left"):
        verifier_of(bench).verify(SERVER.id, point.id, stop=stop)
    assert bench.rows.get(point.id).point.verified_at is None
