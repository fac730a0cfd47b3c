"""What the receiver says that it holds is what it holds, whatever a volume went through before."""

import errno
import os

import pytest

from agent.protocol.errors import Conflict, SessionUnknown, StorageError, StorageFull, VolumeBusy
from agent.protocol.frames import Kind, decode, encode_offer
from recovery.sites.contract import VolumeKey
from service.receiver import pull
from service.receiver import session as session_module
from tests.service.receiver.pushing import BLOCK, SERVER, Bench, Pusher, answer_of, changed, digests_of, make_image


def test_a_volume_that_was_not_protected_for_a_while_is_not_taken_for_zeros(bench: Bench, pusher: Pusher) -> None:
    """The agent skips zeros where the receiver says that it holds nothing but zeros."""
    boot, data = make_image(4, seed=1), b"\x05" * (4 * BLOCK)
    pusher.push(boot, data)
    pusher.push(boot)
    again = b"\x05" * BLOCK + bytes(3 * BLOCK)
    begun = pusher.begin(boot, again)
    assert begun.volumes[1].root == digests_of(data).root().hex()
    pusher.send(begun.session, boot, pusher.offer(begun.session, boot))
    pusher.send(begun.session, again, pusher.offer(begun.session, again, 1), 1)
    point = pusher.commit(begun.session, boot, again)
    assert bench.content(point.id, 1) == again
    bench.verify(bench.archive.manifest(SERVER.id, point.id))


@pytest.mark.parametrize("lost", ["{}.json", "{}.0.digests"])
def test_what_the_newest_snapshot_holds_is_read_back_where_its_documents_are_lost(
    bench: Bench, pusher: Pusher, lost: str
) -> None:
    first = make_image(8, seed=1)
    second = changed(first, seed=2)
    pusher.push(first)
    point = pusher.push(second)
    bench.site.delete_document(SERVER.id, lost.format(point.id))
    assert pusher.begin(second).volumes[0].root == digests_of(second).root().hex()


def test_a_write_that_failed_half_way_is_never_committed(
    bench: Bench, pusher: Pusher, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = make_image(4, seed=1)
    new = old[:BLOCK] + b"\x09" * BLOCK + old[2 * BLOCK :]
    pusher.push(old)
    begun = pusher.begin(new)
    head = bench.receiver.sessions.get(begun.session, SERVER.id).heads[0]
    write = head._io.write

    def half(offset: int, data: memoryview) -> None:
        write(offset, data[: len(data) // 2])
        raise StorageError("the disk went away")

    monkeypatch.setattr(head._io, "write", half)
    with pytest.raises(StorageError, match="went away"):
        pusher.send(begun.session, new, [1])
    with pytest.raises(SessionUnknown):
        pusher.commit(begun.session, old)  # the source went back to what it was before
    assert bench.content(pusher.push(old).id) == old


def test_a_point_whose_second_volume_comes_in_use_while_it_is_removed_goes_in_the_end(
    bench: Bench, pusher: Pusher, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = [pusher.push(make_image(4, seed), make_image(4, seed + 50)).id for seed in range(3)]
    reading = bench.archive.open(bench.archive.manifest(SERVER.id, points[0]), 1)
    assert bench.retain(keep=2) == []
    assert bench.archive.exists(SERVER.id, points[0]), "it is whole, as long as that can be"
    monkeypatch.setattr(bench.site, "check_unused", lambda key, point_id: None)
    assert bench.retain(keep=2) == []
    assert [point.id for point in bench.rows.newest_first(SERVER.id)] == points[:0:-1], "half a point is no point"
    reading.close()
    points.append(pusher.push(make_image(4, 3), make_image(4, 53)).id)
    assert bench.retain(keep=2) == [points[1]]
    for index in (0, 1):
        assert bench.site.snapshots(VolumeKey(SERVER.id, index)) == points[2:]
    assert {name for _, name in bench.site.documents() if name.startswith(points[0])} <= {
        f"{points[0]}.0.digests",
        f"{points[0]}.1.digests",
    }


def test_a_point_in_use_is_a_point_all_the_time(bench: Bench, pusher: Pusher, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pulls and launches look its manifest up while retention asks in vain; a crash then must not lose it."""
    points = [pusher.push(make_image(4, seed)).id for seed in range(2)]
    seen = []

    def in_use(key: VolumeKey, point_id: str) -> None:
        seen.append(bench.archive.exists(SERVER.id, point_id))
        raise Conflict("in use")

    monkeypatch.setattr(bench.site, "delete_snapshot", in_use)
    assert bench.retain(keep=1) == []
    manifest = bench.site.read_document(SERVER.id, f"{points[0]}.json")
    bench.site.write_document(SERVER.id, f"{points[0]}.deleting.json", manifest)  # as a crash just then leaves it
    bench.receiver.recover()
    assert seen == [True, True]
    assert {point.id for point in bench.rows.newest_first(SERVER.id)} == set(points)
    assert not [name for _, name in bench.site.documents() if "deleting" in name]


def test_one_rotten_manifest_does_not_keep_the_other_points_from_being_used(bench: Bench, pusher: Pusher) -> None:
    points = [pusher.push(make_image(4, seed)).id for seed in range(5)]
    bench.site.write_document(SERVER.id, f"{points[2]}.json", b"rot")
    bench.restart()
    assert [manifest.point.id for manifest in bench.archive.recover()] == points[:2] + points[3:]
    assert [point.id for point in bench.rows.newest_first(SERVER.id)] == points[4:2:-1] + points[1::-1]
    assert any(name == f"{points[2]}.0.digests" for _, name in bench.site.documents()), "what is left of it stays"
    assert pusher.push(make_image(4, 9))


def test_what_a_push_brought_is_not_read_back_when_its_session_was_closed_in_good_order(
    bench: Bench, pusher: Pusher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading back may take longer than an agent waits: then each of its tries must not begin that anew."""
    old, image = make_image(40, seed=1), changed(make_image(40, seed=1), seed=3, blocks=12)
    pusher.push(old)
    begun = pusher.begin(image)
    lacking = pusher.offer(begun.session, image)
    pusher.send(begun.session, image, lacking[:-2])

    monkeypatch.setattr(bench.site, "changes", lambda key: pytest.fail("it was looked for what is to be read back"))
    again = pusher.begin(image, supersedes=begun.session)
    assert pusher.offer(again.session, image) == lacking[-2:]
    pusher.send(again.session, image, lacking[-2:])
    point = pusher.commit(again.session, image)
    assert bench.content(point.id) == image
    monkeypatch.undo()
    assert bench.content(pusher.push(old).id) == old


def test_a_head_that_was_damaged_after_it_was_closed_in_good_order_is_made_anew(bench: Bench, pusher: Pusher) -> None:
    image = make_image(8, seed=1)
    begun = pusher.begin(image)
    pusher.send(begun.session, image, pusher.offer(begun.session, image))
    bench.receiver.abandon(SERVER.id, begun.session, "the agent gave up")
    (head,) = bench.folder.glob("site/*/volume-0/head.qcow2")
    with head.open("r+b") as file:
        file.write(bytes(512))
    with pytest.raises(StorageError, match="no qcow2 file"):
        pusher.begin(image)
    assert bench.content(pusher.push(image).id) == image


def test_a_head_that_was_closed_and_is_resized_is_looked_at_again(bench: Bench, pusher: Pusher) -> None:
    image = make_image(8, seed=1)
    begun = pusher.begin(image)
    pusher.send(begun.session, image, pusher.offer(begun.session, image))
    small = image[: 3 * BLOCK + 512]
    again = pusher.begin(small, supersedes=begun.session)
    assert again.volumes[0].root == digests_of(small).root().hex()


def test_a_begin_does_not_hold_a_thread_for_as_long_as_another_works_on_the_server(
    bench: Bench, pusher: Pusher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "LOCK_PATIENCE_SECONDS", 0.05)
    with bench.receiver.sessions.server_lock(SERVER.id), pytest.raises(VolumeBusy, match="busy"):
        pusher.begin(make_image(2, seed=1))
    assert pusher.push(make_image(2, seed=1))


def test_an_answer_to_a_pull_has_a_limit(bench: Bench, pusher: Pusher, monkeypatch: pytest.MonkeyPatch) -> None:
    """One frame may name 65,536 blocks of up to 1 MiB, and the answer is put together in memory."""
    monkeypatch.setattr(pull, "ANSWER_BYTES", 4 * BLOCK)
    point = pusher.push(b"\x05" * (5 * BLOCK))
    manifest = bench.archive.manifest(SERVER.id, point.id)
    reader = pull.PointReader(bench.archive)
    blocks, until = decode(answer_of(reader.differing(manifest, 0, encode_offer(range(5), bytes(5 * 32)))))
    assert (blocks.kind, blocks.indices) == (Kind.BLOCKS, (0, 1, 2, 3))
    assert (until.kind, until.indices) == (Kind.UNTIL, (4,))
    (rest,) = decode(answer_of(reader.differing(manifest, 0, encode_offer((4,), bytes(32)))))
    assert rest.indices == (4,)
    reader.close()


def test_a_head_whose_disk_did_not_keep_what_was_written_is_read_back(
    bench: Bench, pusher: Pusher, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = make_image(8, seed=1)
    begun = pusher.begin(image)
    lacking = pusher.offer(begun.session, image)
    pusher.send(begun.session, image, lacking)

    def failing(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", failing)
        again = pusher.begin(image, supersedes=begun.session)
    pusher.send(again.session, image, pusher.offer(again.session, image))
    assert bench.content(pusher.commit(again.session, image).id) == image


def test_no_room_for_the_digest_map_is_an_error_and_not_the_end_of_the_service(
    bench: Bench, pusher: Pusher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write to a hole of a mapped file on a full disk is a SIGBUS."""

    def full(descriptor: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StorageFull):
        pusher.begin(make_image(2, seed=1))
    monkeypatch.undo()
    assert pusher.push(make_image(2, seed=1))
