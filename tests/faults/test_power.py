"""The receiver's power is cut: whatever its disk had not yet been told to keep is gone, or not.

SIGKILL leaves everything that was written; a power cut only what was flushed. Each test writes down what the service's
disk is told while real commands go on, then opens a new service on what cuts at many places of that log would have
left. UNDERSTUDY_SEED=n tries other cuts, UNDERSTUDY_CUTS=n more of them.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.pacing.rate import Limit
from agent.pacing.settings import Settings, load, save
from tests.faults.harness import Ledger, Service, enrolled, sum_of
from tests.faults.images import BLOCK, change_image, make_image, resize_image
from tests.faults.power import FILESYSTEMS, LoggedDisk, filesystem
from tests.seeds import seeded
from tests.service.receiver.verify.rot import flip, place_of

KEEP = 2
CUTS = int(os.environ.get("UNDERSTUDY_CUTS", "24"))

pytestmark = [
    pytest.mark.long,
    pytest.mark.root,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(os.geteuid() != 0, reason="filesystems of their own need root"),
    pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="the logged disk needs FUSE"),
]


class World:
    """A service whose data lies on a logged disk, its agent, and what was reported when."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.rng = folder, seeded()
        self.disk = LoggedDisk(folder)
        self.service = Service(folder / "mount", "--keep", str(KEEP))
        self.images = [
            make_image(folder / f"disk-{n}.raw", self.rng, size) for n, size in enumerate((6 << 20, (2 << 20) + 1536))
        ]
        self.reported: list[tuple[int, str]] = []
        """(how far the log was when the point had been reported, its id), oldest first."""
        self._mkfs = FILESYSTEMS[kind]

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Everything is up; afterwards only the log is left, to be cut."""
        with self.disk.attached() as file, filesystem(file, self.folder / "mount", *self._mkfs):
            self.service.start()
            try:
                self.agent = enrolled(self.folder / "agent", self.service, "web01")
                self.agent.protect(*self.images)
                self.ledger = Ledger(self.agent, self.folder)
                self.began = self.disk.reached()
                yield
            finally:
                self.service.stop()

    def push(self) -> str:
        point = self.ledger.reported(self.agent.push(), *self.images)
        self.reported.append((self.disk.reached(), point))
        return point

    def change(self) -> None:
        for image in self.images:
            change_image(image, self.rng)
            if self.rng.random() < 0.4:
                resize_image(image, self.rng)

    def cuts(self, since: int) -> Iterator[tuple[int, Service]]:
        """(how far the log was, a new service on what the cut has left): half of them right after a flush."""
        flushes, anywhere = self.disk.flushes(since), range(since, self.disk.reached() + 1)
        for number in range(CUTS):
            at = self.rng.choice(flushes if number % 2 else anywhere)
            with self._cut(at) as service:
                yield at, service

    @contextlib.contextmanager
    def _cut(self, at: int) -> Iterator[Service]:
        image = self.folder / "cut.img"
        self.disk.cut(at, self.rng, image)
        with filesystem(image, self.folder / "mount"):
            again = Service(self.folder / "mount", "--keep", str(KEEP), port=self.service.port)
            if (marker := again.data / "dedupe" / "open").exists():
                marker.write_text("the boot before")  # this machine has not been started again
            again.start()
            try:
                yield again
                assert "Traceback" not in again.log()
            except BaseException:
                print(f"cut after {at} entries\n{again.log()[-6000:]}")
                raise
            finally:
                again.stop()
        image.unlink()

    def check(self, service: Service, at: int) -> None:
        """Every point that was reported before the cut, and that retention has not taken, is as it was."""
        made = [point for _, point in self.reported]
        told = [point for reached, point in self.reported if reached <= at]
        listed = [point["id"] for point in service.points("web01")][::-1]
        if not listed:
            assert told == []
            return
        newest = made.index(listed[-1])
        assert newest in (len(told) - 1, len(told)), f"listed {listed}, reported {told}"
        assert listed == made[newest + 1 - len(listed) : newest + 1]
        assert len(listed) >= min(KEEP, newest + 1), f"listed {listed}, reported {told}"
        for point in listed[-KEEP:]:  # what is older goes at any moment
            assert service.ask("verify", point).code == 0
            self.holds(service, point, self.ledger.sums[point])

    def holds(self, service: Service, point: str, sums: list[str]) -> None:
        for volume, expected in enumerate(sums):
            assert self.ledger.content(service, point, volume) == expected, f"{point} is not what was pushed"

    def goes_on(self, service: Service) -> None:
        """The next push makes a point of what the server has now."""
        before = [point["id"] for point in service.points("web01")][: KEEP - 1]
        point = str(self.agent.push().document["point"])
        assert service.ask("verify", point).code == 0
        self.holds(service, point, [sum_of(image) for image in self.images])
        for older in before:
            self.holds(service, older, self.ledger.sums[older])


@pytest.fixture(params=sorted(FILESYSTEMS))
def kind(request: pytest.FixtureRequest) -> str:
    if shutil.which(FILESYSTEMS[request.param][0]) is None:
        pytest.skip(f"no {FILESYSTEMS[request.param][0]} here")
    return str(request.param)


@pytest.fixture
def world(kind: str, tmp_path: Path) -> World:
    return World(tmp_path, kind)


def test_a_cut_in_pushes_commits_and_retention_loses_nothing_that_was_reported(world: World) -> None:
    with world.running():
        for _ in range(6):
            world.push()
            world.change()
    for at, service in world.cuts(world.began):
        world.check(service, at)
        world.goes_on(service)


def test_a_cut_while_blocks_are_healed_makes_nothing_worse(world: World) -> None:
    """Half of what rotted is still in a newer point, elsewhere on the disk."""
    rng = random.Random(1)
    contents = [rng.randbytes(BLOCK) for _ in range(16)]
    image = world.images[0]
    with world.running():
        image.write_bytes(b"".join(contents))
        first = world.push()
        image.write_bytes(b"".join([rng.randbytes(BLOCK) for _ in contents] + contents))
        second = world.push()
        path = world.service.chain(world.agent.server_id) / f"{first}.qcow2"
        for content in contents:
            flip(path, place_of(path, content) + rng.randrange(BLOCK))
        since = world.disk.reached()
        healed = world.service.ask("verify", "--heal", first)
        assert healed.code == 0, healed
    for _, service in world.cuts(since):
        world.holds(service, second, world.ledger.sums[second])
        assert service.ask("verify", "--heal", first).code == 0
        world.holds(service, first, world.ledger.sums[first])
        world.goes_on(service)


def test_a_cut_in_the_import_of_a_seed_costs_only_what_has_to_be_pushed_then(world: World) -> None:
    seed = world.folder / "web.seed"
    with world.running():
        world.agent.ask("seed", "--onto", seed, "--json").document  # noqa: B018  # asserts
        since = world.disk.reached()
        world.service.ask("seed", "import", seed, "--json").document  # noqa: B018  # asserts
    for _, service in world.cuts(since):
        assert service.points("web01") == []
        world.goes_on(service)


def test_what_an_agent_was_told_to_do_is_known_after_a_cut(tmp_path: Path, kind: str) -> None:
    disk, rng, image = LoggedDisk(tmp_path), seeded(), tmp_path / "cut.img"
    with disk.attached() as file, filesystem(file, tmp_path / "mount", *FILESYSTEMS[kind]) as state:
        told = []
        for rate in range(100_000, 100_020):
            save(state, Settings(Limit(rate)))
            told.append((disk.reached(), rate))
    for at in [rng.randrange(told[0][0], disk.reached() + 1) for _ in range(CUTS)]:
        disk.cut(at, rng, image)
        with filesystem(image, tmp_path / "mount") as state:
            limit = load(state).limit
        assert limit is not None
        assert limit.bytes_a_second >= max(rate for reached, rate in told if reached <= at)
