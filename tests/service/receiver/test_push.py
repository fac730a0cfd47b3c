"""A push ends in a recovery point that equals the source, or in nothing at all."""

import contextlib

import pytest

from agent.protocol.digests import ZERO_DIGEST, block_digest
from agent.protocol.errors import (
    BadFrame,
    BadMessage,
    DigestMismatch,
    NotFound,
    RootMismatch,
    SessionUnknown,
    StaleEpoch,
    StorageError,
    Superseded,
    VolumeBusy,
)
from agent.protocol.frames import encode_blocks, encode_offer, encode_zeros
from agent.protocol.messages import BeginRequest, CommitRequest, VolumeDeclaration
from recovery.control import Server
from recovery.sites.contract import VolumeKey
from service.receiver import session as session_module
from tests.service.receiver.pushing import BLOCK, SERVER, Bench, Pusher, changed, digests_of, make_image


def test_a_point_is_a_plain_qcow2_file_equal_to_the_source(bench: Bench, pusher: Pusher) -> None:
    image = make_image(40, seed=1, tail_bytes=1024)
    point = pusher.push(image)
    assert bench.content(point.id) == image
    assert point.volumes[0].root == digests_of(image).root().hex()


def test_the_next_push_lacks_only_what_changed_and_leaves_earlier_points_alone(bench: Bench, pusher: Pusher) -> None:
    first, second = make_image(40, seed=1), changed(make_image(40, seed=1), seed=2)
    one = pusher.push(first)
    begun = pusher.begin(second)
    assert begun.volumes[0].root == one.volumes[0].root
    lacking = pusher.offer(begun.session, second)
    assert 0 < len(lacking) <= 3
    pusher.send(begun.session, second, lacking)
    two = pusher.commit(begun.session, second)
    assert (bench.content(one.id), bench.content(two.id)) == (first, second)


def test_a_point_of_several_volumes_shows_them_all(bench: Bench, pusher: Pusher) -> None:
    images = make_image(10, seed=1), make_image(20, seed=2)
    point = pusher.push(*images)
    assert tuple(bench.content(point.id, index) for index in (0, 1)) == images


def test_roots_that_differ_make_no_point_and_the_push_can_still_be_put_right(bench: Bench, pusher: Pusher) -> None:
    image = make_image(20, seed=1)
    begun = pusher.begin(image)
    lacking = pusher.offer(begun.session, image)
    pusher.send(begun.session, image, lacking[1:])
    with pytest.raises(RootMismatch):
        pusher.commit(begun.session, image)
    assert bench.rows.newest_first(SERVER.id) == []
    pusher.send(begun.session, image, lacking[:1])
    assert bench.content(pusher.commit(begun.session, image).id) == image


def test_what_a_cut_push_brought_is_found_by_the_next_one(bench: Bench, pusher: Pusher) -> None:
    image = make_image(40, seed=1)
    begun = pusher.begin(image)
    lacking = pusher.offer(begun.session, image)
    pusher.send(begun.session, image, lacking[:10])
    again = pusher.begin(image, supersedes=begun.session)
    assert pusher.offer(again.session, image) == lacking[10:]


def test_what_a_push_brought_before_the_receiver_was_killed_is_read_back(bench: Bench, pusher: Pusher) -> None:
    old, image = make_image(40, seed=1), changed(make_image(40, seed=1), seed=3, blocks=12)
    pusher.push(old)
    begun = pusher.begin(image)
    lacking = pusher.offer(begun.session, image)
    pusher.send(begun.session, image, lacking[: len(lacking) // 2])
    bench.restart()
    again = pusher.begin(image)
    rest = pusher.offer(again.session, image)
    assert set(rest) <= set(lacking)
    pusher.send(again.session, image, rest)
    assert bench.content(pusher.commit(again.session, image).id) == image


def test_committing_twice_gives_the_same_point(bench: Bench, pusher: Pusher) -> None:
    image = make_image(5, seed=1)
    begun = pusher.begin(image)
    pusher.send(begun.session, image, pusher.offer(begun.session, image))
    point = pusher.commit(begun.session, image)
    bench.restart()
    assert pusher.commit(begun.session, image) == point
    assert len(bench.rows.newest_first(SERVER.id)) == 1


def test_an_active_push_is_not_taken_over_by_a_stranger(pusher: Pusher, bench: Bench) -> None:
    image = make_image(5, seed=1)
    pusher.begin(image)
    with pytest.raises(VolumeBusy, match="machine-1"):
        Pusher(bench, "machine-2").begin(image)


def test_a_silent_push_is_taken_over_and_told_so(bench: Bench, pusher: Pusher, monkeypatch: pytest.MonkeyPatch) -> None:
    image = make_image(5, seed=1)
    begun = pusher.begin(image)
    monkeypatch.setattr(session_module, "SILENCE_SECONDS", 0.0)
    Pusher(bench, "machine-2").begin(image)
    with pytest.raises(Superseded, match="machine-2"):
        pusher.offer(begun.session, image)


def test_a_fenced_push_gets_nothing_more_in(bench: Bench, pusher: Pusher) -> None:
    image = make_image(5, seed=1)
    begun = pusher.begin(image)
    bench.receiver.fence(SERVER.id, "web01 failed over")
    with pytest.raises(Superseded, match="failed over"):
        pusher.commit(begun.session, image)


def test_a_commit_is_refused_when_the_server_was_failed_over_meanwhile(bench: Bench, pusher: Pusher) -> None:
    image = make_image(5, seed=1)
    begun = pusher.begin(image)
    pusher.send(begun.session, image, pusher.offer(begun.session, image))

    def failed_over(machine_id: str) -> Server:
        raise StaleEpoch(f"machine {machine_id} is not the owner any more")

    with pytest.raises(StaleEpoch, match="machine-1"):
        bench.receiver.commit(
            SERVER.id,
            begun.session,
            failed_over,
            CommitRequest(
                roots=[digests_of(image).root().hex()],
                consistency="crash",
                completeness="scanned",
                age_seconds=0,
            ),
        )
    assert bench.rows.newest_first(SERVER.id) == []


def test_another_servers_push_is_unknown(bench: Bench, pusher: Pusher) -> None:
    begun = pusher.begin(make_image(5, seed=1))
    with pytest.raises(SessionUnknown):
        bench.receiver.offer("srv-other", begun.session, 0, encode_offer([0], ZERO_DIGEST))


def test_a_frame_that_is_refused_changes_nothing(bench: Bench, pusher: Pusher) -> None:
    image = make_image(20, seed=1)
    point = pusher.push(image)
    begun = pusher.begin(image)
    good = block_digest(b"n" * BLOCK)

    def blocks(body: bytes, volume: int = 0) -> None:
        bench.receiver.blocks(SERVER.id, begun.session, volume, body)

    with pytest.raises(DigestMismatch):
        blocks(encode_blocks([0, 1], good + good, [b"n" * BLOCK, b"m" * BLOCK]))
    with pytest.raises(BadFrame, match="outside"):
        blocks(encode_blocks([20], good, [b"n" * BLOCK]))
    with pytest.raises(BadFrame):
        blocks(encode_blocks([0], good, [b"n" * BLOCK])[:-1])
    with pytest.raises(BadFrame):
        blocks(encode_zeros([0]))
    with pytest.raises(NotFound):
        blocks(encode_blocks([0], good, [b"n" * BLOCK]), volume=1)
    assert pusher.commit(begun.session, image).volumes[0].root == point.volumes[0].root


@pytest.mark.parametrize("blocks", [12, 45])
def test_a_disk_that_changed_its_size_is_taken_over_with_the_new_one(bench: Bench, pusher: Pusher, blocks: int) -> None:
    first = make_image(30, seed=1, tail_bytes=512)
    resized = (first + make_image(20, seed=2))[: blocks * BLOCK + 1024]
    one, two = pusher.push(first), pusher.push(resized)
    three = pusher.push(first)
    assert [bench.content(point.id) for point in (one, two, three)] == [first, resized, first]


def test_volumes_that_cannot_be_are_refused(bench: Bench) -> None:
    good = VolumeDeclaration(path="/dev/vda", size_bytes=BLOCK, block_bytes=BLOCK)
    odd = VolumeDeclaration(path="/dev/vdb", size_bytes=1000, block_bytes=BLOCK)
    for volumes in ([], [odd], [good, good], [good] * 200):
        with pytest.raises(BadMessage):
            bench.receiver.begin(SERVER.id, lambda: SERVER, BeginRequest(machine_id="m", volumes=volumes))


def test_a_commit_cut_between_any_two_of_its_steps_is_carried_on_at_the_next_start(
    bench: Bench, pusher: Pusher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call that changes the site fails once; after a restart there is the old point, and the new one or not."""
    image = make_image(8, seed=0)
    last = pusher.push(image, image)
    names = ["write_document", "delete_document", "snapshot"]
    for step in range(9):
        image = changed(image, seed=step)
        begun = pusher.begin(image, image)
        for volume in (0, 1):
            pusher.send(begun.session, image, pusher.offer(begun.session, image, volume), volume)
        calls = 0
        for name in names:
            original = getattr(bench.site, name)

            def failing(*arguments: object, _original: object = original, _step: int = step) -> object:
                nonlocal calls
                calls += 1
                if calls > _step:
                    raise StorageError("the power went")
                return _original(*arguments)  # type: ignore[operator]

            monkeypatch.setattr(bench.site, name, failing)
        with contextlib.suppress(StorageError):
            pusher.commit(begun.session, image, image)
        monkeypatch.undo()
        bench.restart()
        points = bench.rows.newest_first(SERVER.id)
        assert points[0].id in (last.id, begun.session)
        if points[0].id == begun.session:
            assert [bench.content(points[0].id, index) for index in (0, 1)] == [image, image]
        last = pusher.push(image, image)
        assert bench.content(last.id) == image
        assert bench.verify(bench.archive.manifest(SERVER.id, last.id)) == 2 * len(image)


def test_digests_of_a_commit_that_never_happened_are_cleared_away(bench: Bench, pusher: Pusher) -> None:
    pusher.push(make_image(4, seed=1))
    bench.site.write_document(SERVER.id, "pt-never.0.digests", b"x")
    bench.restart()
    assert not [name for _, name in bench.site.documents() if name.startswith("pt-never")]


def test_the_rows_are_made_again_from_the_site_when_the_database_is_lost(bench: Bench, pusher: Pusher) -> None:
    point = pusher.push(make_image(4, seed=1))
    bench.rows.remove(point.id)
    bench.restart()
    assert bench.rows.newest_first(SERVER.id)[0].root == point.root


def test_points_are_listed_in_the_order_of_the_chain_when_the_clock_jumped_back(
    bench: Bench, pusher: Pusher, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [pusher.push(make_image(4, seed=1)).id]
    monkeypatch.setattr(bench.receiver, "_now", lambda: 1_000_000.0)
    made.append(pusher.push(make_image(4, seed=2)).id)
    for point_id in made:
        bench.rows.remove(point_id)
    bench.restart()
    assert [point.id for point in bench.rows.newest_first(SERVER.id)] == made[::-1]


def test_a_row_without_a_point_at_the_site_is_removed(bench: Bench, pusher: Pusher) -> None:
    point = pusher.push(make_image(4, seed=1))
    bench.site.delete_document(SERVER.id, f"{point.id}.json")
    bench.site.delete_snapshot(VolumeKey(SERVER.id, 0), point.id)
    bench.restart()
    assert bench.rows.newest_first(SERVER.id) == []
