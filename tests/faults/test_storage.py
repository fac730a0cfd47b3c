"""The receiver's disk: full, taken away, tampered with; and QEMU's tools that are not there."""

from __future__ import annotations

import os
import pty
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.inventory import machine_id
from agent.volumes.topology import in_use
from tests.faults.harness import BINARIES, Agent, Ledger, Service, ended, sum_of
from tests.faults.hostile import BLOCK, Hostile, blocks_of, root_of
from tests.faults.images import change_image, make_image
from tests.faults.machine import Ballast, loop_device, mounted, path_without
from tests.faults.relay import Fault, Harm, Relay
from tests.patience import PATIENCE_SECONDS

ROOT = os.stat("/").st_dev
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="filesystems of their own need root")


@pytest.mark.root
@needs_root
class TestFull:
    @pytest.fixture
    def disk(self, tmp_path: Path) -> Iterator[Path]:
        """A filesystem of 600 MiB for the service's data."""
        with mounted("tmpfs", tmp_path / "disk", "-t", "tmpfs", "-o", "size=600m") as folder:
            yield folder

    @pytest.fixture
    def service(self, disk: Path, tmp_path: Path) -> Iterator[Service]:
        made = Service(disk)
        made.start()
        yield made
        made.stop()
        assert "Traceback" not in made.log()

    def test_full_before_a_push(
        self, protected: Agent, image: Path, ledger: Ledger, service: Service, disk: Path
    ) -> None:
        ballast = Ballast(disk)
        ballast.fill(leave_bytes=100 << 20)
        change_image(image, random.Random(2))
        assert "free space" in protected.push().complaint
        ledger.check(service)
        ballast.empty()
        ledger.reported(protected.push(), image)
        ledger.check(service)

    def test_full_in_the_middle_of_a_push(self, service: Service, disk: Path, tmp_path: Path) -> None:
        ballast = Ballast(disk)
        image = make_image(tmp_path / "disk.raw", random.Random(1), 24 << 20)
        with Relay(service.port) as relay:
            agent = Agent(tmp_path / "agent", service, url=relay.url)
            agent.enroll("web01")
            ledger = Ledger(agent, tmp_path)
            agent.protect(image)
            ledger.reported(agent.push(), image)
            make_image(image, random.Random(2), 24 << 20)
            relay.arm(Fault(Harm.STALL, after_bytes=1 << 20, seconds=3600.0))
            pushing = agent.begin("push")
            assert relay.struck.wait(PATIENCE_SECONDS)
            ballast.fill()
            relay.disarm()
            assert "space" in ended(pushing).complaint
            ledger.check(service)
            service.kill()
            ballast.empty()
            service.start()
            ledger.reported(agent.push(), image)
            ledger.check(service)

    def test_full_at_the_commit(
        self, protected: Agent, ledger: Ledger, service: Service, disk: Path, tmp_path: Path
    ) -> None:
        hostile, ballast = Hostile(protected, machine_id()), Ballast(disk)
        content = random.Random(3).randbytes(64 * BLOCK)
        (tmp_path / "content").write_bytes(content)
        session = hostile.begin(len(content)).document["session"]
        assert hostile.blocks(session, blocks_of(content)).status == 200
        ballast.fill()
        refused = hostile.commit(session, [root_of(content)])
        assert refused.code == "storage_full", refused
        ballast.empty()
        answer = hostile.commit(session, [root_of(content)])
        if answer.status != 200:
            assert answer.code == "session_unknown", answer
        ledger.check(service, tmp_path / "content")

    def test_full_at_the_start(
        self, protected: Agent, image: Path, ledger: Ledger, service: Service, disk: Path
    ) -> None:
        service.kill()
        ballast = Ballast(disk)
        ballast.fill()
        failed = subprocess.run(
            service.command(), capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
        )
        assert failed.returncode == 1, failed
        assert "Traceback" not in failed.stderr
        assert failed.stderr.strip().splitlines()[-1].startswith("understudy: ")
        ballast.empty()
        service.start()
        ledger.reported(protected.push(), image)
        ledger.check(service)


@pytest.mark.root
@needs_root
class TestTargets:
    def test_targets_that_must_not_be_written_are_refused_untouched(
        self, protected: Agent, image: Path, ledger: Ledger, tmp_path: Path
    ) -> None:
        small = make_image(tmp_path / "small.raw", random.Random(2), 1 << 20)
        before = sum_of(small)
        assert "too small" in protected.pull(small).complaint
        assert sum_of(small) == before
        assert "directory" in protected.pull(tmp_path).complaint
        assert protected.pull("/dev/null").complaint
        assert protected.pull("/dev/understudy-no-such-disk").complaint
        assert protected.pull(tmp_path / "no" / "folder").complaint
        backing = tmp_path / "mounted.raw"
        subprocess.run(["mke2fs", "-q", "-t", "ext4", backing, "64M"], check=True)
        with loop_device(backing) as device, mounted(device, tmp_path / "mount") as mount:
            (mount / "kept").write_text("as it was")
            assert "mounted" in protected.pull(device).complaint
            assert str(backing) in protected.pull(backing).complaint
            assert (mount / "kept").read_text() == "as it was"
        with loop_device(small) as device:
            assert "too small" in protected.pull(device).complaint
            assert sum_of(device) == before
        onto = tmp_path / "new.raw"
        protected.pull(onto).document  # noqa: B018  # asserts
        assert sum_of(onto) == sum_of(image)

    def test_a_target_that_nobody_confirmed_is_wrong_usage_and_stays_untouched(
        self, protected: Agent, tmp_path: Path
    ) -> None:
        refused = protected.ask("pull", "latest", "--volume", "0", "--onto", tmp_path / "x.raw")
        assert refused.code == 2
        assert refused.err.strip().endswith("say --yes")
        assert not (tmp_path / "x.raw").exists()

    def test_what_will_be_lost_is_told_and_the_servers_name_has_to_be_typed(
        self, protected: Agent, image: Path, ledger: Ledger, tmp_path: Path
    ) -> None:
        target = tmp_path / "target.raw"
        with open(target, "wb") as file:
            file.truncate(image.stat().st_size)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-L", "payroll", target], check=True)
        before = sum_of(target)
        for answer, code in (("yes", 1), (protected.server_name, 0)):
            assert sum_of(target) == before
            said, ended_with = answered(protected, target, answer)
            assert f'all that is on {target} is lost (ext4 "payroll")' in said
            assert f"becomes volume 0 of {protected.server_name} as of " in said
            assert ended_with == code, said
        assert sum_of(target) == sum_of(image)

    def test_a_point_or_volume_that_is_not_there_is_named(self, protected: Agent, tmp_path: Path) -> None:
        for point, volume in (("pt-2222222222", 0), ("latest", 1), ("latest", -1), ("../x", 0)):
            assert protected.pull(tmp_path / "x.raw", point, volume).complaint
            assert not (tmp_path / "x.raw").exists()

    def test_a_target_that_runs_full_can_be_pulled_again(
        self, protected: Agent, image: Path, ledger: Ledger, tmp_path: Path
    ) -> None:
        with mounted("tmpfs", tmp_path / "tight", "-t", "tmpfs", "-o", "size=3m") as tight:
            assert "room" in protected.pull(tight / "disk.raw").complaint
            subprocess.run(["mount", "-o", "remount,size=30m", tight], check=True)
            protected.pull(tight / "disk.raw").document  # noqa: B018  # asserts
            assert sum_of(tight / "disk.raw") == sum_of(image)


def answered(agent: Agent, target: Path, answer: str) -> tuple[str, int]:
    """What a pull onto `target` says on a terminal, and how it ends, when it is given this answer."""
    ours, theirs = pty.openpty()
    line = [BINARIES / "understudy-agent", "--state", agent.folder, "pull", "latest", "--volume", "0", "--onto", target]
    try:
        os.write(ours, answer.encode() + b"\n")
        done = subprocess.run(line, stdin=theirs, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
    finally:
        os.close(ours)
        os.close(theirs)
    return done.stderr, done.returncode


def test_the_running_systems_own_disk_is_known_as_such() -> None:
    """Asked of the function that decides, which reads and nothing else: no real pull is ever pointed at it."""
    device = Path("/dev") / Path(f"/sys/dev/block/{os.major(ROOT)}:{os.minor(ROOT)}").resolve().name
    if not device.is_block_device():
        pytest.skip("the root filesystem lies on no block device that is seen from here")
    assert "running system's own disk" in str(in_use(str(device)))


def test_what_is_kept_can_be_read_by_nobody_else_also_where_the_folder_was_there_before(
    protected: Agent, ledger: Ledger, service: Service
) -> None:
    """The folder may be a disk that somebody mounted there."""
    assert service.data.stat().st_mode & 0o077, "it was made before the service, for all to read"
    assert (service.data / "understudy.sqlite").exists()
    open_to_others = [path.name for path in service.data.iterdir() if path.stat().st_mode & 0o077]
    assert open_to_others == []


def test_without_qemus_tools_the_package_is_named_and_nothing_is_lost(
    protected: Agent, image: Path, ledger: Ledger, service: Service, tmp_path: Path
) -> None:
    service.stop()
    path = path_without(tmp_path, "qemu-")
    without = Service(service.folder, port=service.port, env={"PATH": path})
    without.start()
    try:
        change_image(image, random.Random(2))
        assert "qemu-utils" in protected.push().complaint
    finally:
        without.stop()
    service.start()
    ledger.reported(protected.push(), image)
    ledger.check(service)


def test_damage_at_the_site_is_named_and_the_next_push_works(
    protected: Agent, image: Path, ledger: Ledger, service: Service
) -> None:
    rng = random.Random(5)
    (point,) = ledger.sums
    path = service.chain(protected.server_id) / f"{point}.qcow2"
    good = path.read_bytes()
    path.chmod(0o600)
    with open(path, "r+b") as file:
        file.seek(-BLOCK, os.SEEK_END)
        file.write(rng.randbytes(4096))
    assert point in service.ask("verify", point).complaint
    assert point in service.ask("verify", "--all").complaint
    change_image(image, rng)
    pushed = protected.push()
    if pushed.code == 0:
        ledger.reported(pushed, image)
    path.write_bytes(good)
    path.chmod(0o444)
    ledger.reported(protected.push(), image)
    ledger.check(service)


def test_a_lost_database_and_cache_are_made_again_from_the_points(
    protected: Agent, image: Path, ledger: Ledger, service: Service
) -> None:
    """The points are the product; enrolling again finds them."""
    change_image(image, random.Random(6))
    ledger.reported(protected.push(), image)
    service.kill()
    for path in service.data.glob("understudy.sqlite*"):
        path.unlink()
    shutil.rmtree(service.data / "receiver")
    service.start()
    ledger.check(service)
    protected.enroll("web01")
    change_image(image, random.Random(7))
    ledger.reported(protected.push(), image)
    ledger.check(service)


def test_an_export_that_cannot_be_written_is_one_clear_line(
    protected: Agent, ledger: Ledger, service: Service, tmp_path: Path
) -> None:
    (point,) = ledger.sums
    for out in (tmp_path / "no" / "folder.raw", tmp_path):
        assert service.ask("export", point, "--format", "raw", out).complaint
    assert service.ask("export", "pt-2222222222", "--format", "raw", tmp_path / "x").complaint
    assert service.ask("export", point, "--volume", "7", "--format", "raw", tmp_path / "x").complaint
    assert ledger.exported(service, point) == ledger.sums[point][0]


def test_points_whose_clocks_went_backwards_are_found_again_in_their_order(
    protected: Agent, ledger: Ledger, service: Service, tmp_path: Path
) -> None:
    """Built upon the wrong one, the next point would be what never was."""
    hostile, rng = Hostile(protected, machine_id()), random.Random(8)
    content = tmp_path / "content"
    for hours in (0, 2, 4):
        content.write_bytes(rng.randbytes(16 * BLOCK))
        point = hostile.push(content.read_bytes(), age_seconds=hours * 3600.0)
        ledger.sums[point] = [sum_of(content)]
    service.kill()
    for path in service.data.glob("understudy.sqlite*"):
        path.unlink()
    service.start()
    ledger.check(service)
    protected.enroll("web01")
    protected.protect(content)
    ledger.reported(protected.push(), content)
    ledger.check(service)
