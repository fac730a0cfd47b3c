"""What a crash left of a push is read back once, whoever asks meanwhile, and keeps nobody else waiting."""

import threading
from typing import Any

import pytest

from agent.protocol.errors import StorageError, VolumeBusy
from recovery.sites.contract import VolumeIO, VolumeKey
from service.receiver import standing
from tests.patience import PATIENCE_SECONDS, eventually
from tests.service.receiver.pushing import BLOCK, SERVER, Bench, Pusher, digests_of, make_image

MIB = 1 << 20


class Held:
    """Opens volumes whose reads wait until they are let go, and counts what was read.

    Who asks meanwhile is told soon how far it is; once all is let go, it is waited for."""

    def __init__(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch
        self._patch.setattr(standing, "PATIENCE_SECONDS", 0.1)
        self._open = bench.site.open_volume
        self._patch.setattr(bench.site, "open_volume", self)
        self.go_on = threading.Semaphore(0)
        self.fail = False
        self.read_bytes = 0

    def __call__(self, key: VolumeKey) -> VolumeIO:
        io = self._open(key)
        read = io.read

        def held(offset: int, length: int) -> Any:
            self.go_on.acquire()
            if self.fail:
                raise StorageError("the disk does not answer")
            self.read_bytes += length
            return read(offset, length)

        io.read = held  # type: ignore[method-assign]
        return io

    def let_go(self) -> None:
        self._patch.setattr(standing, "PATIENCE_SECONDS", PATIENCE_SECONDS)
        self.go_on.release(1000)


@pytest.fixture
def image() -> bytes:
    return b"\x05" * (12 * MIB)


@pytest.fixture
def held(bench: Bench, pusher: Pusher, image: bytes, monkeypatch: pytest.MonkeyPatch) -> Held:
    """A receiver that has been killed in the middle of a first push, and is slow to read."""
    begun = pusher.begin(image)
    pusher.send(begun.session, image, pusher.offer(begun.session, image))
    head = bench.receiver.sessions.get(begun.session, SERVER.id).heads[0]
    head.flush()
    bench.restart()
    return Held(bench, monkeypatch)


def busy(pusher: Pusher, image: bytes) -> str:
    with pytest.raises(VolumeBusy) as caught:
        pusher.begin(image)
    assert "push again" in caught.value.hint
    return caught.value.message


def test_an_agent_that_asks_again_finds_it_further_on_and_in_the_end_done(
    bench: Bench, pusher: Pusher, held: Held, image: bytes
) -> None:
    assert "0 of 12 MiB" in busy(pusher, image)
    held.go_on.release(2)
    eventually(lambda: "8 of 12 MiB" in busy(pusher, image))
    held.let_go()
    begun = pusher.begin(image)
    assert begun.volumes[0].root == digests_of(image).root().hex()
    assert held.read_bytes == len(image), "nothing was read twice"
    point = pusher.commit(begun.session, image)
    assert bench.content(point.id) == image


def test_a_failover_does_not_wait_for_it(bench: Bench, pusher: Pusher, held: Held, image: bytes) -> None:
    busy(pusher, image)
    bench.receiver.fence(SERVER.id, "failed over")
    assert bench.retain(keep=1) == []
    held.let_go()
    assert pusher.push(image)


def test_reading_that_failed_is_told_and_begun_anew(bench: Bench, pusher: Pusher, held: Held, image: bytes) -> None:
    held.fail = True
    held.let_go()
    with pytest.raises(StorageError, match="does not answer"):
        pusher.begin(image)
    held.fail = False
    assert pusher.begin(image).volumes[0].root == digests_of(image).root().hex()


def test_a_disk_resized_meanwhile_is_looked_at_again(bench: Bench, pusher: Pusher, held: Held, image: bytes) -> None:
    busy(pusher, image)
    held.let_go()
    small = image[: 5 * BLOCK]
    assert pusher.begin(small).volumes[0].root == digests_of(small).root().hex()


def test_the_service_stops_in_the_middle_of_it(bench: Bench, pusher: Pusher, held: Held, image: bytes) -> None:
    busy(pusher, image)
    (read_back,) = bench.receiver._standing._reading.values()
    stopping = threading.Thread(target=bench.receiver.close)
    stopping.start()
    assert read_back._stop.wait(PATIENCE_SECONDS)
    held.go_on.release(1)
    stopping.join()
    assert held.read_bytes < len(image)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read back")]


def test_a_second_volume_that_is_read_back_does_not_have_the_first_read_again(
    bench: Bench, pusher: Pusher, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = make_image(8, seed=1), b"\x05" * (8 * MIB)
    begun = pusher.begin(*images)
    for volume, image in enumerate(images):
        pusher.send(begun.session, image, pusher.offer(begun.session, image, volume), volume)
    bench.restart()
    slow = Held(bench, monkeypatch)
    slow.go_on.release(1)
    with pytest.raises(VolumeBusy):
        pusher.begin(*images)
    slow.let_go()
    roots = [volume.root for volume in pusher.begin(*images).volumes]
    assert roots == [digests_of(image).root().hex() for image in images]
    assert slow.read_bytes <= sum(map(len, images))
