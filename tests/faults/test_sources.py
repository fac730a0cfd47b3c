"""Sources that are no disks, change under the agent's hands, or cannot be read: one clear line, and nothing lost."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.harness import Agent, Ledger, Service, children, ended
from tests.faults.images import BLOCK, change_image, make_image, resize_image
from tests.faults.machine import in_private_mounts, loop_device, mounted
from tests.faults.relay import Fault, Harm, Relay
from tests.patience import PATIENCE_SECONDS

REPOSITORY = Path(__file__).parents[2]
needs_root = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="loop devices and mounts need root")]


def test_what_is_no_disk_cannot_be_protected(protected: Agent, image: Path, ledger: Ledger, tmp_path: Path) -> None:
    odd, empty, fifo = tmp_path / "odd.raw", tmp_path / "empty.raw", tmp_path / "fifo"
    odd.write_bytes(b"x" * 777)
    empty.touch()
    os.mkfifo(fifo)
    qcow2 = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", qcow2, "1M"], check=True)
    for path in (tmp_path, Path("/dev/zero"), odd, empty, fifo, qcow2, tmp_path / "missing", image / "below"):
        assert str(path) in protected.ask("protect", path).complaint
    assert protected.ask("protect", image, image).complaint
    ledger.reported(protected.push(), image)
    ledger.check(protected.service)


def test_a_disk_that_is_gone_at_the_next_push_is_named(
    protected: Agent, image: Path, ledger: Ledger, service: Service
) -> None:
    away = image.with_name("away.raw")
    image.rename(away)
    assert str(image) in protected.push().complaint
    image.mkdir()
    assert "directory" in protected.push().complaint
    image.rmdir()
    away.rename(image)
    ledger.reported(protected.push(), image)
    ledger.check(service)


@pytest.mark.parametrize("change_bytes", [-3 * 1024 * 1024 - 512, 5 * 1024 * 1024 + 512])
def test_an_image_that_changes_its_size_during_a_push_makes_no_point(
    tmp_path: Path, service: Service, change_bytes: int
) -> None:
    image = make_image(tmp_path / "disk.raw", random.Random(1), 24 << 20)
    with Relay(service.port) as relay:
        agent = Agent(tmp_path / "agent", service, url=relay.url)
        agent.enroll("web01")
        ledger = Ledger(agent, tmp_path)
        agent.protect(image)
        ledger.reported(agent.push(), image)
        change_image(image, random.Random(2), 40)
        relay.arm(Fault(Harm.STALL, after_bytes=500_000, seconds=3600.0))
        pushing = agent.begin("push")
        assert relay.struck.wait(PATIENCE_SECONDS)
        os.truncate(image, image.stat().st_size + change_bytes)
        relay.disarm()
        assert str(image) in ended(pushing).complaint
        assert len(service.points("web01")) == 1
        ledger.reported(agent.push(), image)
        ledger.check(service)


def test_an_image_that_changes_its_size_between_pushes_is_taken_over(
    protected: Agent, image: Path, ledger: Ledger, service: Service
) -> None:
    rng = random.Random(3)
    for _ in range(5):
        resize_image(image, rng)
        change_image(image, rng)
        ledger.reported(protected.push(), image)
    ledger.check(service)


def test_an_image_that_is_written_all_the_time_makes_no_point_that_never_was(
    tmp_path: Path, image: Path, service: Service
) -> None:
    rng, lock = random.Random(4), threading.Lock()

    def write() -> None:
        with lock, open(image, "r+b") as disk:
            disk.seek(rng.randrange(image.stat().st_size // BLOCK) * BLOCK)
            disk.write(rng.randbytes(512))

    with Relay(service.port) as relay:
        agent = Agent(tmp_path / "agent", service, url=relay.url)
        agent.enroll("web01")
        ledger = Ledger(agent, tmp_path)
        agent.protect(image)
        ledger.reported(agent.push(), image)
        write()
        relay.meanwhile = write  # however fast or slow the push is: what it sends of one write meets the next
        assert str(image) in agent.push().complaint
        relay.meanwhile = lambda: None
        ledger.reported(agent.push(), image)
        ledger.check(service)


class TestDevices:
    pytestmark = needs_root

    def test_read_errors_are_named_and_cost_nothing(
        self, agent: Agent, ledger: Ledger, service: Service, tmp_path: Path
    ) -> None:
        backing = make_image(tmp_path / "backing.raw", random.Random(1), 16 << 20)
        whole = backing.read_bytes()
        with loop_device(backing) as device:
            agent.protect(device)
            ledger.reported(agent.push(), backing)
            os.truncate(backing, 8 << 20)
            assert device in agent.push().complaint
            backing.write_bytes(whole)
            ledger.reported(agent.push(), device)
            ledger.check(service)

    def test_a_disk_mounted_read_only_is_replicated(
        self, agent: Agent, ledger: Ledger, service: Service, tmp_path: Path
    ) -> None:
        backing = filesystem(tmp_path)
        with loop_device(backing) as device, mounted(device, tmp_path / "mount", "-o", "ro"):
            agent.protect(device)
            # what the device's page cache shows may never have been on the medium
            ledger.reported(agent.push(), backing)
            ledger.reported(agent.push(), backing)
        ledger.check(service)

    def test_a_mounted_disk_in_use_gives_a_point_whose_filesystem_is_whole(
        self, agent: Agent, ledger: Ledger, service: Service, tmp_path: Path
    ) -> None:
        backing = filesystem(tmp_path)
        with loop_device(backing) as device, mounted(device, tmp_path / "mount") as mount, writer(mount):
            agent.protect(device)
            for _ in range(3):
                point = str(agent.push().document["point"])
                image = service.chain(agent.server_id) / f"{point}.qcow2"
                out = tmp_path / "point.raw"
                subprocess.run(["qemu-img", "convert", "-O", "raw", image, out], check=True)
                # with its journal replayed, as a boot would; -n: what is left must be nothing
                subprocess.run(["e2fsck", "-p", out], check=False, capture_output=True)
                checked = subprocess.run(["e2fsck", "-fn", out], check=False, capture_output=True, text=True)
                assert checked.returncode == 0, checked.stdout
                ledger.sums[point] = [ledger.content(service, point)]
        ledger.check(service)

    def test_an_agent_that_lives_on_the_disk_it_freezes_does_not_wait_for_itself(
        self, agent: Agent, ledger: Ledger, service: Service, tmp_path: Path
    ) -> None:
        """Its programs, state, temporary files and output are there, as on a server with one disk. Whatever it wrote
        while frozen would hold it up until the watchdog thaws, and then there would be no point."""
        backing = filesystem(tmp_path)
        with loop_device(backing) as device, mounted(device, tmp_path / "mount") as mount, writer(mount):
            shutil.copytree(REPOSITORY / "agent", mount / "agent", ignore=shutil.ignore_patterns("__pycache__"))
            shutil.copytree(agent.folder, mount / "state")
            (mount / "tmp").mkdir()
            code = (
                f"import agent, sys; assert agent.__file__.startswith({str(mount)!r}); "
                "from agent.cli import main; sys.exit(main(sys.argv[1:]))"
            )
            for arguments in (["protect", device], ["push", "--json"], ["push", "--json"]):
                with open(mount / "out", "w") as out, open(mount / "err", "w") as err:
                    done = subprocess.run(
                        [sys.executable, "-c", code, "--state", "state", *arguments],
                        cwd=mount,
                        env={**os.environ, "PYTHONPATH": str(mount), "HOME": str(mount), "TMPDIR": str(mount / "tmp")},
                        stdin=subprocess.DEVNULL,
                        stdout=out,
                        stderr=err,
                        check=False,
                    )
                assert done.returncode == 0, (mount / "err").read_text()
                if arguments[0] == "push":
                    pushed = json.loads((mount / "out").read_text())
                    assert pushed["frozen_seconds"] > 0
                    ledger.sums[pushed["point"]] = [ledger.content(service, pushed["point"])]
        ledger.check(service)

    @pytest.mark.parametrize("killed_together", [False, True])
    def test_an_agent_killed_while_it_froze_leaves_nothing_frozen(
        self, agent: Agent, ledger: Ledger, service: Service, tmp_path: Path, killed_together: bool
    ) -> None:
        """`killed_together`: with the process that thaws; then what systemd would run thaws."""
        thawed = False
        with slowly_read(agent, tmp_path) as mount, writer(mount) as writing:
            while not thawed:
                pushing, freezers = caught_while_frozen(agent, writing)
                for pid in [*(freezers if killed_together else []), pushing.pid]:
                    os.kill(pid, signal.SIGKILL)
                ended(pushing)
                thawed = not killed_together or bool(agent.ask("thaw", "--json").document["thawed"])
            writing.await_write()
            agent.push().document  # noqa: B018  # asserts

    def test_a_receiver_that_is_gone_while_the_agent_froze_leaves_nothing_frozen(
        self, agent: Agent, ledger: Ledger, service: Service, tmp_path: Path
    ) -> None:
        with slowly_read(agent, tmp_path) as mount, writer(mount) as writing:
            agent.push().document  # noqa: B018  # asserts
            before = [point["id"] for point in service.points("web01")]
            pushing, _ = caught_while_frozen(agent, writing)
            service.kill()
            assert "could not be reached" in ended(pushing).complaint
            writing.await_write()
            service.start()
            assert [point["id"] for point in service.points("web01")] == before
            agent.push().document  # noqa: B018  # asserts


def filesystem(folder: Path, size_bytes: int = 64 << 20) -> Path:
    """An image with an ext4 filesystem and some content."""
    content = folder / "content"
    content.mkdir()
    make_image(content / "data", random.Random(5), size_bytes // 3)
    image = folder / "filesystem.raw"
    with open(image, "wb") as file:
        file.truncate(size_bytes)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", content, image], check=True)
    return image


class writer:  # noqa: N801  # reads as what it is, a context
    """Writes below `mount` all the time. `written_at`: when (monotonic) the last write was on the medium."""

    def __init__(self, mount: Path) -> None:
        self._path = mount / "log"
        self._stop = threading.Event()
        self.written_at = time.monotonic()
        self._thread = threading.Thread(target=self._write, daemon=True)

    def _write(self) -> None:
        with open(self._path, "ab") as file:
            while not self._stop.wait(0.01):
                file.write(random.randbytes(4096))
                file.flush()
                os.fsync(file.fileno())
                self.written_at = time.monotonic()

    @property
    def held_up(self) -> bool:
        """It waits for a thaw, as the kernel calls that; where it does not tell, it waits for very long."""
        waits_in = Path(f"/proc/self/task/{self._thread.native_id}/wchan").read_text()
        return "percpu" in waits_in or time.monotonic() - self.written_at > 2.0

    def await_write(self) -> None:
        """A write that comes back after now."""
        before = time.monotonic()
        while self.written_at < before:
            assert time.monotonic() < before + PATIENCE_SECONDS, "the filesystem stayed frozen"
            time.sleep(0.05)

    def __enter__(self) -> writer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(PATIENCE_SECONDS)
        assert not self._thread.is_alive(), "a write never came back"


@contextlib.contextmanager
def slowly_read(agent: Agent, folder: Path) -> Iterator[Path]:
    """The agent protects a mounted disk, without the change tracker: the whole disk is read while frozen, long enough
    to be caught at it. Gives where it is mounted."""
    backing = filesystem(folder, 512 << 20)
    with loop_device(backing) as device, mounted(device, folder / "mount") as mount:
        agent.prefix = in_private_mounts("mount --bind /dev/null /sys/kernel/btf/vmlinux")
        agent.protect(device)
        try:
            yield mount
        finally:
            agent.prefix = ()
            subprocess.run(["fsfreeze", "--unfreeze", mount], check=False, capture_output=True)


def caught_while_frozen(agent: Agent, writing: writer) -> tuple[subprocess.Popen[str], list[int]]:
    """Push until writes are seen to wait: that push, which goes on, and its process that thaws."""
    limit = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < limit:
        pushing = agent.begin("push")
        while pushing.poll() is None:
            time.sleep(0.002)
            if writing.held_up and (freezers := children(pushing.pid)):
                return pushing, freezers
        ended(pushing)
    raise AssertionError("no push was caught while it froze")
