"""The power is cut while points are made, merged, and healed: what was not flushed is gone, or not.

The site's disk is logged write by write, and a new site opened on what cuts at many places of that log would leave.
UNDERSTUDY_SEED=n tries others."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from recovery.sites.local import LocalSite
from tests.faults.power import FILESYSTEMS, LoggedDisk, filesystem
from tests.recovery.sites.conftest import KEY, content
from tests.recovery.sites.local.test_crashes import build_chain, size_of
from tests.seeds import seeded

ROUNDS, CUTS = 4, 25

pytestmark = [
    pytest.mark.long,
    pytest.mark.root,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(os.geteuid() != 0, reason="filesystems of their own need root"),
    pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="the logged disk needs FUSE"),
]


@pytest.fixture(params=sorted(FILESYSTEMS))
def kind(request: pytest.FixtureRequest) -> str:
    if shutil.which(FILESYSTEMS[request.param][0]) is None:
        pytest.skip(f"no {FILESYSTEMS[request.param][0]} here")
    return str(request.param)


class Life:
    """What is done to a volume, and what it then has to hold from which place in the log on."""

    def __init__(self, disk: LoggedDisk, root: Path, rng: random.Random) -> None:
        self._disk, self._rng = disk, rng
        self.held, _ = build_chain(root, rng, points=5)
        self.began = disk.reached()
        self.made = dict.fromkeys(self.held, self.began)
        """Point -> how far the log was when it had been made."""
        self.gone: dict[str, int] = {}
        """Point -> how far the log was when its removal began."""
        site = LocalSite(root, accel="tcg")
        for _ in range(6):
            if len(self.held) - len(self.gone) > 2 and rng.random() < 0.6:
                self._remove(site)
            else:
                self._make(site)
        site.close()

    def _remove(self, site: LocalSite) -> None:
        doomed = self._rng.choice([point for point in self.held if point not in self.gone])
        self.gone[doomed] = self._disk.reached()
        site.delete_snapshot(KEY, doomed)

    def _make(self, site: LocalSite) -> None:
        point, size = f"p{len(self.held)}", size_of(self._rng)
        site.make_volume(KEY, size)
        io = site.open_volume(KEY)
        length = self._rng.randrange(1, min(1 << 20, size))
        io.write(self._rng.randrange(size - length), self._rng.randbytes(length))
        io.flush()
        io.close()
        self.held[point] = content(site, KEY)
        site.snapshot(KEY, point)
        self.made[point] = self._disk.reached()


@pytest.mark.parametrize("number", range(ROUNDS))
def test_a_cut_changes_no_point_and_loses_none_that_was_made(tmp_path: Path, kind: str, number: int) -> None:
    rng = random.Random(seeded().random() + number)
    disk, image = LoggedDisk(tmp_path), tmp_path / "cut.img"
    with disk.attached() as file, filesystem(file, tmp_path / "mount", *FILESYSTEMS[kind]) as mount:
        life = Life(disk, mount / "site", rng)
    flushes = disk.flushes(life.began)
    for cut in range(CUTS):
        at = rng.choice(flushes) if cut % 2 else rng.randrange(life.began, disk.reached() + 1)
        disk.cut(at, rng, image)
        with filesystem(image, tmp_path / "mount") as mount:
            site = LocalSite(mount / "site", accel="tcg")
            left = site.snapshots(KEY)
            wanted = {point for point, reached in life.made.items() if reached <= at < life.gone.get(point, at + 1)}
            assert wanted <= set(left), f"cut after {at}"
            assert left == [point for point in life.held if point in left]
            for point in left:
                assert content(site, KEY, point) == life.held[point], f"cut after {at}: {point} changed"
                assert site.snapshot_complaints(KEY, point) == []
            for doomed in left[:-1]:
                site.delete_snapshot(KEY, doomed)
            assert content(site, KEY, left[-1]) == life.held[left[-1]]
            site.make_volume(KEY, len(life.held[left[-1]]) + 512)
            site.close()
        image.unlink()
