"""The local site after SIGKILL, full disks, and processes that outlived their service."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.protocol.errors import Conflict, NotFound, StorageFull
from recovery.sites.contract import InstanceSpec, InstanceState, VolumeKey
from recovery.sites.local import LocalSite
from recovery.sites.local.tools import at_work, await_exit, processes
from tests.faults.machine import unmount
from tests.patience import PATIENCE_SECONDS, eventually
from tests.recovery.sites.conftest import KEY, content, make_point

REPOSITORY = Path(__file__).parents[4]
VOLUME_BYTES = 24 << 20
DELETES = """
import sys
from pathlib import Path
from recovery.sites.contract import VolumeKey
from recovery.sites.local import LocalSite
site = LocalSite(Path(sys.argv[1]), accel="tcg")
print("ready", flush=True)
for point in sys.argv[2:]:
    site.delete_snapshot(VolumeKey("web01", 0), point)
print("done", flush=True)
site.close()
"""
OPENS = """
import sys, time
from pathlib import Path
from recovery.sites.contract import VolumeKey
from recovery.sites.local import LocalSite
site = LocalSite(Path(sys.argv[1]), accel="tcg")
io = site.open_volume(VolumeKey("web01", 0))
print("ready", flush=True)
time.sleep(600)
"""


def service(program: str, root: Path, *arguments: str) -> subprocess.Popen[str]:
    """Another process that works on the site; returns once it said that it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(root), *arguments], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def working_below(root: Path) -> list[int]:
    return [pid for pid, arguments in processes() if any(f"{root}/" in part for part in arguments[1:])]


def build_chain(root: Path, rng: random.Random, points: int) -> tuple[dict[str, bytes], bytes]:
    """A volume that shrinks and grows from point to point, and a head; returns what each holds, and the head."""
    site = LocalSite(root, accel="tcg")
    held = {}
    for number in range(points):
        size = size_of(rng)
        site.make_volume(KEY, size)
        io = site.open_volume(KEY)
        for _ in range(4):
            length = rng.randrange(1, min(3 << 20, size))
            offset = rng.randrange(size - length)
            if rng.random() < 0.25:
                io.zero(offset, length)
            else:
                io.write(offset, rng.randbytes(length))
        io.flush()
        io.close()
        site.snapshot(KEY, f"p{number}")
        held[f"p{number}"] = content(site, KEY, f"p{number}")
    site.make_volume(KEY, size_of(rng))
    head = content(site, KEY)
    site.close()
    return held, head


def size_of(rng: random.Random) -> int:
    """A little smaller than the largest, or much."""
    return VOLUME_BYTES - rng.randrange(8) * 512 * 1000 if rng.random() < 0.6 else rng.randrange(8, 40_000) * 512


def kill_in_the_middle_of_deletes(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    root = tmp_path / f"site-{seed}"
    held, head = build_chain(root, rng, points=5)
    doomed = rng.sample(sorted(held), 3)
    process = service(DELETES, root, *doomed)
    time.sleep(rng.random() * rng.choice([0.25, 0.25, 1.5]))
    kill(process)

    site = LocalSite(root, accel="tcg")
    try:
        left = site.snapshots(KEY)
        assert set(left) >= set(held) - set(doomed)
        assert left == [name for name in held if name in left]
        for name in left:
            assert content(site, KEY, name) == held[name], f"seed {seed}: point {name} changed"
        assert content(site, KEY) == head, f"seed {seed}: the working state changed"
        for name in doomed:
            site.delete_snapshot(KEY, name)
        assert site.snapshots(KEY) == [name for name in held if name not in doomed]
        for name in site.snapshots(KEY):
            assert content(site, KEY, name) == held[name], f"seed {seed}: point {name} changed"
        assert content(site, KEY) == head
        assert sorted(path.name for path in (root / "web01" / "volume-0").iterdir()) == sorted(
            ["head.qcow2", *(f"{name}.qcow2" for name in held if name not in doomed)]
        )
    finally:
        site.close()


@pytest.mark.parametrize("seed", range(8))
def test_a_kill_while_points_are_deleted_changes_no_other_point(tmp_path: Path, seed: int) -> None:
    kill_in_the_middle_of_deletes(tmp_path, seed)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_hundred_kills_while_points_are_deleted_change_no_other_point(tmp_path: Path) -> None:
    for seed in range(1000, 1100):
        kill_in_the_middle_of_deletes(tmp_path, seed)


def test_the_kill_can_fall_between_any_two_steps_of_a_delete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps one by one, each cut off right before it."""
    from recovery.sites.local import chain

    class Killed(BaseException):
        pass

    steps = ["sync_folder", "read_header", "resize", "merge_down", "sync_file"]
    for number, step in enumerate(steps):
        root = tmp_path / f"site-{number}"
        held, head = build_chain(root, random.Random(number), points=3)
        site = LocalSite(root, accel="tcg")

        def killed(*_: object, **__: object) -> None:
            raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(chain, step, killed)
            with pytest.raises(Killed):
                site.delete_snapshot(KEY, "p1")
        site.close()
        site = LocalSite(root, accel="tcg")
        assert [name for name in site.snapshots(KEY) if name != "p1"] == ["p0", "p2"]
        assert content(site, KEY, "p0") == held["p0"]
        assert content(site, KEY, "p2") == held["p2"]
        assert content(site, KEY) == head
        site.close()


def test_a_kill_while_a_merged_point_grows_shows_nothing_that_lay_behind_its_end_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """qemu-img resize writes the new size first; killed then, it has hidden nothing of what the layers below hold."""
    from recovery.sites.local import chain

    class Killed(BaseException):
        pass

    def killed_early(path: Path, size_bytes: int) -> None:
        with open(path, "r+b") as file:
            file.seek(24)  # the header's size field
            file.write(size_bytes.to_bytes(8, "big"))
        raise Killed

    large, small = 1 << 20, (1 << 20) - 500 * 512
    site = LocalSite(tmp_path / "site", accel="tcg")
    make_point(site, KEY, "p0", (0, b"0" * large), size=large)
    make_point(site, KEY, "p1", (0, b"1" * 512), size=small)
    make_point(site, KEY, "p2", (512, b"2" * 512), (large - 512, b"2" * 512), size=large)
    held = content(site, KEY, "p2")
    with monkeypatch.context() as patch:
        patch.setattr(chain, "resize", killed_early)
        with pytest.raises(Killed):
            site.delete_snapshot(KEY, "p1")
    site.close()
    site = LocalSite(tmp_path / "site", accel="tcg")
    assert site.snapshots(KEY) == ["p0", "p2"]
    assert content(site, KEY, "p2") == held
    site.close()


def test_a_point_whose_deletion_was_cut_off_is_not_listed_and_does_not_hold_a_new_push_up(tmp_path: Path) -> None:
    site = LocalSite(tmp_path / "site", accel="tcg")
    make_point(site, KEY, "p1", (0, b"1" * 512))
    make_point(site, KEY, "p2", (0, b"2" * 512))
    folder = tmp_path / "site" / "web01" / "volume-0"
    (folder / "p2.deleting").touch()
    assert site.snapshots(KEY) == ["p1"]
    with pytest.raises(NotFound):
        site.open_snapshot(KEY, "p2")
    site.make_volume(KEY, 1 << 20)
    assert content(site, KEY)[:512] == b"1" * 512
    assert not (folder / "p2.qcow2").exists()
    site.close()


def test_a_killed_service_leaves_no_process_and_its_volume_opens_again(tmp_path: Path) -> None:
    root = tmp_path / "site"
    site = LocalSite(root, accel="tcg")
    site.make_volume(KEY, 1 << 20)
    site.close()
    kill(service(OPENS, root))
    assert working_below(root) == []
    site = LocalSite(root, accel="tcg")
    site.open_volume(KEY).close()
    site.close()


def test_a_qemu_img_of_a_killed_service_is_ended(tmp_path: Path) -> None:
    root = tmp_path / "site"
    site = LocalSite(root, accel="tcg")
    site.make_volume(KEY, 1 << 20)
    site.close()
    head = root / "web01" / "volume-0" / "head.qcow2"
    left = subprocess.Popen(["qemu-img", "bench", "-f", "qcow2", "-c", "2000000000", head], stdout=subprocess.DEVNULL)
    try:
        eventually(lambda: left.pid in working_below(root))
        LocalSite(root, accel="tcg").close()
        assert left.wait(PATIENCE_SECONDS) == -signal.SIGKILL
    finally:
        left.kill()
        left.wait()


def test_a_process_that_a_killed_service_had_only_just_made_is_waited_for(tmp_path: Path) -> None:
    """Between fork and exec it has its parent's command line, and would be qemu-img a moment later."""
    site = LocalSite(tmp_path / "site", accel="tcg")
    site.make_volume(KEY, 1 << 20)
    site.close()
    with at_work(tmp_path / "site" / "web01" / "volume-0") as held:
        other = subprocess.Popen(["sleep", "0.5"], pass_fds=[held])
    LocalSite(tmp_path / "site", accel="tcg").close()
    assert other.poll() == 0


def test_a_process_that_only_looks_like_ours_is_left_alone(tmp_path: Path) -> None:
    other = subprocess.Popen(["sleep", "600"], executable="/bin/sleep")
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", f"{tmp_path}/site/x"])
    try:
        LocalSite(tmp_path / "site", accel="tcg").close()
        assert other.poll() is None
        assert bystander.poll() is None
    finally:
        for process in (other, bystander):
            process.kill()
            process.wait()


def test_two_services_never_work_in_one_folder(tmp_path: Path) -> None:
    site = LocalSite(tmp_path / "site", accel="tcg")
    with pytest.raises(Conflict, match="another process"):
        LocalSite(tmp_path / "site", accel="tcg")
    site.close()
    site.close()
    LocalSite(tmp_path / "site", accel="tcg").close()


@pytest.mark.qemu
def test_an_instance_outlives_the_service_and_is_found_again(
    local_site: LocalSite, tmp_path: Path, bootable: Callable[..., InstanceSpec]
) -> None:
    local_site.launch(bootable())
    local_site.close()
    again = LocalSite(tmp_path / "site", accel="tcg")
    try:
        assert [instance.state for instance in again.instances()] == [InstanceState.RUNNING]
        again.end("i-1")
        assert working_below(tmp_path / "site") == []
    finally:
        again.close()


@pytest.mark.qemu
def test_a_launch_that_was_cut_off_is_completed_by_the_next(
    local_site: LocalSite, tmp_path: Path, bootable: Callable[..., InstanceSpec]
) -> None:
    spec = bootable()
    local_site.launch(spec)
    local_site.end("i-1")
    local_site.launch(spec)
    folder = tmp_path / "site" / "instances" / "i-1"
    # what a kill between making the folder and starting QEMU leaves
    (pid,) = working_below(tmp_path / "site")
    os.kill(pid, signal.SIGKILL)
    await_exit(pid, PATIENCE_SECONDS)
    for path in folder.iterdir():
        if path.name != "spec.json":
            path.unlink()
    assert local_site.watch("i-1").state is InstanceState.PENDING
    assert local_site.launch(spec).state is InstanceState.RUNNING


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small filesystem")
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "understudy-test", str(folder)], check=True)
    yield folder
    unmount(folder)


@pytest.mark.root
def test_a_full_disk_is_told_and_keeps_every_point(small_disk: Path) -> None:
    site = LocalSite(small_disk / "site", accel="tcg")
    key = VolumeKey("web01", 0)
    first = os.urandom(8 << 20)
    make_point(site, key, "p1", (0, first), size=64 << 20)
    site.make_volume(key, 64 << 20)
    io = site.open_volume(key)
    with pytest.raises(StorageFull):
        for offset in range(0, 64 << 20, 1 << 20):
            io.write(offset, os.urandom(1 << 20))
    io.close()
    with pytest.raises(StorageFull):
        site.write_document("web01", "big", os.urandom(16 << 20))
    assert content(site, key, "p1")[: len(first)] == first
    site.revert(key)
    second = os.urandom(4 << 20)
    make_point(site, key, "p2", (32 << 20, second), size=64 << 20)

    filler = small_disk / "filler"
    filler.write_bytes(bytes(site.free_bytes()))
    with pytest.raises(StorageFull):
        site.delete_snapshot(key, "p1")
    assert site.snapshots(key) == ["p2"]
    assert content(site, key, "p2")[: len(first)] == first
    filler.unlink()
    site.delete_snapshot(key, "p1")
    held = content(site, key, "p2")
    assert held[: len(first)] == first
    assert held[32 << 20 : 36 << 20] == second
    assert sorted(path.name for path in (small_disk / "site" / "web01" / "volume-0").iterdir()) == ["p2.qcow2"]
    site.close()
