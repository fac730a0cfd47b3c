"""An agent that hears nothing of its commit for long asks again: there is one point all the same."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from agent.protocol.errors import RootMismatch, StorageError, VolumeBusy
from agent.protocol.messages import Point
from service.receiver import receiver as receiver_module
from tests.patience import PATIENCE_SECONDS
from tests.service.receiver.pushing import SERVER, Bench, Pusher, make_image


class Slow:
    """A step of the commit that waits until it is let go, and counts how often it was taken."""

    def __init__(self, step: Any) -> None:
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self.count = 0
        self._step = step

    def __call__(self, *arguments: Any) -> Any:
        self.count += 1
        self.begun.set()
        assert self.go_on.wait(PATIENCE_SECONDS)
        return self._step(*arguments)


@pytest.fixture
def image() -> bytes:
    return make_image(8, seed=1)


@pytest.fixture
def session(pusher: Pusher, image: bytes) -> str:
    begun = pusher.begin(image)
    pusher.send(begun.session, image, pusher.offer(begun.session, image))
    return begun.session


@pytest.mark.parametrize("step", ["prepare", "complete"])
def test_a_commit_repeated_while_the_first_is_at_work_waits_and_gives_the_same_point(
    bench: Bench, pusher: Pusher, image: bytes, session: str, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(getattr(bench.archive, step))
    monkeypatch.setattr(bench.archive, step, slow)
    with ThreadPoolExecutor() as threads:
        tries: list[Future[Point]] = [threads.submit(pusher.commit, session, image)]
        assert slow.begun.wait(PATIENCE_SECONDS)
        tries += [threads.submit(pusher.commit, session, image) for _ in range(2)]
        slow.go_on.set()
        points = [one.result(PATIENCE_SECONDS) for one in tries]
    assert points[0] == points[1] == points[2]
    assert slow.count == 1
    assert bench.content(points[0].id) == image


def test_a_commit_that_waits_long_for_the_first_is_told_so_and_may_ask_again(
    bench: Bench, pusher: Pusher, image: bytes, session: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiver_module, "COMMIT_PATIENCE_SECONDS", 0.05)
    slow = Slow(bench.archive.prepare)
    monkeypatch.setattr(bench.archive, "prepare", slow)
    with ThreadPoolExecutor() as threads:
        first = threads.submit(pusher.commit, session, image)
        assert slow.begun.wait(PATIENCE_SECONDS)
        with pytest.raises(VolumeBusy, match="makes a point"):
            pusher.commit(session, image)
        slow.go_on.set()
        point = first.result(PATIENCE_SECONDS)
    assert pusher.commit(session, image) == point
    assert slow.count == 1


def test_a_commit_whose_first_try_failed_when_there_was_no_way_back_is_carried_to_its_end(
    bench: Bench, pusher: Pusher, image: bytes, session: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise StorageError("no room for the manifest")

    monkeypatch.setattr(bench.archive, "complete", full)
    with pytest.raises(StorageError, match="no room"):
        pusher.commit(session, image)
    monkeypatch.undo()
    point = pusher.commit(session, image)
    assert point.id == session
    assert [row.id for row in bench.rows.newest_first(SERVER.id)] == [session]
    assert bench.content(session) == image


def test_a_commit_with_another_root_is_refused_each_time(
    bench: Bench, pusher: Pusher, image: bytes, session: str
) -> None:
    for _ in range(2):
        with pytest.raises(RootMismatch):
            pusher.commit(session, bytes(len(image)))
    assert pusher.commit(session, image).id == session
