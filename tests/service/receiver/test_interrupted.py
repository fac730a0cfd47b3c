"""Commits and removals that were cut, and whose own documents or working states were then lost: nothing wrong is made
of what is left, and nothing keeps the service from starting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agent.protocol.errors import SessionUnknown, StorageError, StorageFull
from recovery.sites.contract import VolumeKey
from tests.service.receiver.pushing import BLOCK, SERVER, Bench, Pusher, changed, make_image
from tests.service.receiver.verify.rot import flip


def points_of(bench: Bench) -> list[str]:
    return [point.id for point in bench.rows.newest_first(SERVER.id)]


def documents_of(bench: Bench) -> list[str]:
    return sorted(name for _, name in bench.site.documents() if not name.endswith(".digests"))


@pytest.fixture
def image() -> bytes:
    return make_image(20, seed=1)


@pytest.fixture
def first(pusher: Pusher, image: bytes) -> str:
    return pusher.push(image).id


@pytest.fixture
def pending(bench: Bench, pusher: Pusher, image: bytes, first: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The document of a commit that a crash cut when there was no way back any more."""

    def killed(*_: object) -> None:
        raise StorageError("the power went")

    with monkeypatch.context() as patch:
        patch.setattr(bench.archive, "complete", killed)
        with pytest.raises(StorageError):
            pusher.push(changed(image, seed=2))
    (found,) = (bench.folder / "site" / SERVER.id / "documents").glob("*.pending.json")
    return found


def test_a_cut_commit_is_carried_on(bench: Bench, pusher: Pusher, image: bytes, first: str, pending: Path) -> None:
    bench.restart()
    second, old = points_of(bench)
    assert old == first
    assert bench.content(second) == changed(image, seed=2)


def test_a_cut_commit_whose_working_state_is_gone_is_given_up(
    bench: Bench, pusher: Pusher, image: bytes, first: str, pending: Path
) -> None:
    bench.site.revert(VolumeKey(SERVER.id, 0))
    bench.restart()
    assert points_of(bench) == [first]
    new = changed(image, seed=3)
    assert bench.content(pusher.push(new).id) == new


@pytest.mark.parametrize("bit", range(8))
def test_a_cut_commit_whose_document_rotted_is_given_up(
    bench: Bench, pusher: Pusher, image: bytes, first: str, pending: Path, bit: int
) -> None:
    flip(pending, 50 + 77 * bit, bit)
    bench.restart()
    assert points_of(bench) == [first]
    assert documents_of(bench) == [f"{first}.json"]
    new = changed(image, seed=3)
    second = pusher.push(new).id
    bench.restart()
    assert points_of(bench) == [second, first]
    assert bench.content(second) == new


def test_what_was_pushed_after_a_cut_commit_that_could_not_be_read_never_becomes_its_point(
    bench: Bench, pusher: Pusher, image: bytes, first: str, pending: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that cannot be read now may be read again later."""
    read: Any = type(bench.site).read_document

    def unreadable(site: object, server_id: str, name: str) -> bytes:
        if name == pending.name:
            raise StorageError("Input/output error")
        return bytes(read(site, server_id, name))

    new = make_image(20, seed=9)
    with monkeypatch.context() as patch:
        patch.setattr(type(bench.site), "read_document", unreadable)
        bench.restart()
        begun = pusher.begin(new)
        pusher.send(begun.session, new, [0, 1, 2])
        for head in bench.receiver.sessions.all()[0].heads:
            head.flush()
    bench.restart()
    assert points_of(bench) == [first]
    assert bench.content(pusher.push(new).id) == new


def test_a_service_whose_disk_is_full_starts_and_carries_the_commit_on_when_there_is_room(
    bench: Bench, pusher: Pusher, image: bytes, first: str, pending: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StorageFull("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(type(bench.site), "write_document", full)
        bench.restart()
        assert points_of(bench) == [first]
        with pytest.raises(StorageFull):
            pusher.begin(image)
    new = changed(image, seed=3)
    third = pusher.push(new).id
    assert [bench.content(point) for point in points_of(bench)] == [new, changed(image, seed=2), image]
    assert points_of(bench)[0] == third
    for point in points_of(bench):
        bench.verify(bench.archive.manifest(SERVER.id, point))


def test_what_could_not_be_flushed_is_read_back_before_it_is_believed(
    bench: Bench, pusher: Pusher, image: bytes, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk tells of an error once, and the next flush succeeds."""
    new = changed(image, seed=2)
    begun = pusher.begin(new)
    pusher.send(begun.session, new, pusher.offer(begun.session, new))
    (head,) = bench.receiver.sessions.all()[0].heads

    def failing() -> None:
        monkeypatch.undo()
        raise StorageError("Input/output error")

    monkeypatch.setattr(head._io, "flush", failing)
    with pytest.raises(StorageError):
        pusher.commit(begun.session, new)
    with pytest.raises(SessionUnknown):
        pusher.commit(begun.session, new)
    assert points_of(bench) == [first]
    assert bench.content(pusher.push(new).id) == new


def test_a_commit_whose_document_was_not_written_durably_is_not_carried_on(
    bench: Bench, pusher: Pusher, image: bytes, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The push goes on: what the document says is not what the working state holds then."""
    write: Any = type(bench.site).write_document

    def written_but_not_synced(site: object, server_id: str, name: str, content: bytes) -> None:
        write(site, server_id, name, content)
        if name.endswith(".pending.json"):
            raise StorageError("Input/output error")

    begun = pusher.begin(image)
    with monkeypatch.context() as patch:
        patch.setattr(type(bench.site), "write_document", written_but_not_synced)
        with pytest.raises(StorageError):
            pusher.commit(begun.session, image)
    new = changed(image, seed=2)
    pusher.send(begun.session, new, pusher.offer(begun.session, new))
    for head in bench.receiver.sessions.all()[0].heads:
        head.flush()
    bench.restart()
    assert points_of(bench) == [first]


def test_a_cut_removal_goes_on_though_none_of_its_documents_can_be_read(
    bench: Bench, pusher: Pusher, monkeypatch: pytest.MonkeyPatch
) -> None:
    disks = [make_image(6, seed=1), make_image(4, seed=2)]
    doomed, kept = pusher.push(*disks).id, pusher.push(disks[0], changed(disks[1], seed=3)).id
    delete: Any = type(bench.site).delete_snapshot

    def cut_at_the_second(site: object, key: VolumeKey, point_id: str) -> None:
        if key.index:
            raise StorageError("the power went")
        delete(site, key, point_id)

    with monkeypatch.context() as patch:
        patch.setattr(type(bench.site), "delete_snapshot", cut_at_the_second)
        bench.retain(keep=1)
    flip(bench.folder / "site" / SERVER.id / "documents" / f"{doomed}.deleting.json", 100)
    bench.restart()
    assert points_of(bench) == [kept]
    assert documents_of(bench) == [f"{kept}.json"]
    for index, expected in enumerate((disks[0], changed(disks[1], seed=3))):
        assert bench.site.snapshots(VolumeKey(SERVER.id, index)) == [kept]
        assert bench.content(kept, index) == expected
    assert bench.verify(bench.archive.manifest(SERVER.id, kept)) == 10 * BLOCK
