"""What a tracker answers, refuses and doubts; that it misses nothing is in test_completeness.py."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.tracking import ChangeTracker, Taken, Untracked, open_tracker
from agent.tracking.disk import TrackedDisk, locate

from .conftest import BLOCK_BYTES, LoopDisk, run

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="change tracking needs root")]

MIB = 1 << 20
MakeDisk = Callable[..., LoopDisk]
Mount = Callable[[LoopDisk, str], Path]


def test_reading_changes_nothing_and_one_write_marks_one_block(loop_disk: MakeDisk) -> None:
    disk = loop_disk(32 * MIB)
    with disk.tracker() as tracker:
        run("dd", f"if={disk.device}", "of=/dev/null", "bs=1M", "iflag=direct")
        assert tracker.take() == Taken([])
        run("dd", "if=/dev/urandom", f"of={disk.device}", "bs=4096", "seek=33", "count=1", "oflag=direct")
        assert tracker.take() == Taken([(2 * BLOCK_BYTES, BLOCK_BYTES)])
        assert tracker.take() == Taken([])


def test_the_last_block_is_cut_at_the_disks_end(loop_disk: MakeDisk) -> None:
    size = 4 * MIB + 4096
    disk = loop_disk(size)
    with disk.tracker() as tracker:
        run("dd", "if=/dev/urandom", f"of={disk.device}", "bs=4096", "seek=1024", "count=1", "oflag=direct")
        assert tracker.take() == Taken([(4 * MIB, 4096)])


def test_a_discard_longer_than_one_level_marks_all_of_its_range(loop_disk: MakeDisk) -> None:
    disk = loop_disk(6 << 30)  # sparse: a discard of more than 4 GiB is several requests
    with disk.tracker() as tracker:
        run("blkdiscard", "-o", str(24 * MIB), "-l", str((5 << 30) + 4096), disk.device)
        assert tracker.take() == Taken([(16 * MIB, (5 << 30) + 16 * MIB)])


def test_two_trackers_on_two_disks_do_not_mix(loop_disk: MakeDisk) -> None:
    one, two = loop_disk(16 * MIB), loop_disk(16 * MIB)
    with one.tracker() as first, two.tracker() as second:
        run("dd", "if=/dev/urandom", f"of={one.device}", "bs=64K", "seek=3", "count=1", "oflag=direct")
        run("dd", "if=/dev/urandom", f"of={two.device}", "bs=64K", "seek=5", "count=2", "oflag=direct")
        assert first.take() == Taken([(3 * BLOCK_BYTES, BLOCK_BYTES)])
        assert second.take() == Taken([(5 * BLOCK_BYTES, 2 * BLOCK_BYTES)])


def test_two_trackers_on_one_disk_both_see_everything(loop_disk: MakeDisk) -> None:
    disk = loop_disk(16 * MIB)
    with disk.tracker() as first, disk.tracker() as second:
        run("dd", "if=/dev/urandom", f"of={disk.device}", "bs=64K", "seek=3", "count=1", "oflag=direct")
        assert first.take() == second.take() == Taken([(3 * BLOCK_BYTES, BLOCK_BYTES)])


def test_a_write_under_way_while_maps_are_exchanged_is_in_the_next_set(loop_disk: MakeDisk, mounted: Mount) -> None:
    # The disk's image lies on a frozen filesystem, so a write to the disk is issued but cannot be completed.
    outer = loop_disk(96 * MIB)
    folder = mounted(outer, "ext4")
    disk = loop_disk(16 * MIB, folder)
    run("dd", "if=/dev/zero", f"of={disk.image}", "bs=1M", "count=16", "conv=notrunc,fsync")
    writer = threading.Thread(
        target=run, args=("dd", "if=/dev/urandom", f"of={disk.device}", "bs=64K", "seek=9", "count=1", "oflag=direct")
    )
    in_flight = Path("/sys/class/block", Path(disk.device).name, "inflight")
    with disk.tracker() as tracker:
        run("fsfreeze", "--freeze", folder)
        try:
            writer.start()
            while in_flight.read_text().split()[1] == "0":
                assert writer.is_alive()
            assert tracker.take() == Taken([])
        finally:
            run("fsfreeze", "--unfreeze", folder)
        writer.join()
        assert tracker.take() == Taken([(9 * BLOCK_BYTES, BLOCK_BYTES)])


def test_a_request_outside_of_the_known_disk_is_doubt_until_everything_was_read(loop_disk: MakeDisk) -> None:
    disk = loop_disk(16 * MIB)
    found = locate(disk.device)
    assert isinstance(found, TrackedDisk)
    smaller = dataclasses.replace(found, disk_bytes=8 * MIB, source_bytes=8 * MIB)
    with ChangeTracker(smaller, BLOCK_BYTES) as tracker:
        run("dd", "if=/dev/urandom", f"of={disk.device}", "bs=64K", "seek=200", "count=1", "oflag=direct")
        taken = tracker.take()
        assert taken.ranges == [(0, 8 * MIB)]
        assert taken.lost == "a request could not be placed on the disk"


def test_a_disk_that_grows_is_doubt(loop_disk: MakeDisk) -> None:
    disk = loop_disk(16 * MIB)
    with disk.tracker() as tracker:
        os.truncate(disk.image, 32 * MIB)
        run("losetup", "--set-capacity", disk.device)
        assert tracker.take() == Taken([(0, 16 * MIB)], "the source's size changed")


def test_events_that_every_copy_may_have_missed_are_doubt_once(
    loop_disk: MakeDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = loop_disk(16 * MIB)
    with disk.tracker() as tracker:
        counts = dict.fromkeys(tracker._programs, 0)
        monkeypatch.setattr("agent.tracking.tracker.bpf.recursion_misses", lambda program: counts[program])
        first, second, third = counts
        tracker.take()
        counts[first] += 5
        counts[second] += 9
        assert tracker.take().lost is None
        counts[third] += 1
        assert tracker.take().lost is None
        for program in counts:
            counts[program] += 1
        assert tracker.take().lost is not None
        assert tracker.take().lost is None


def test_a_partition_is_followed_through_its_disks_requests(loop_disk: MakeDisk) -> None:
    # The kernel under test need not know partitions: this says where one would lie, and writes to the whole disk.
    disk = loop_disk(16 * MIB)
    found = locate(disk.device)
    assert isinstance(found, TrackedDisk)
    partition = dataclasses.replace(found, source_at=MIB + 4096, source_bytes=8 * MIB)
    monitor = ChangeTracker(partition, BLOCK_BYTES)
    monitor._disk = dataclasses.replace(partition, sysfs=_sysfs_of(partition, disk.image.parent))
    with monitor as tracker:
        for seek in (0, 20, 200):  # in 64 KiB: before the partition, in it, behind it
            run("dd", "if=/dev/urandom", f"of={disk.device}", "bs=64K", f"seek={seek}", "count=1", "oflag=direct")
        assert tracker.take() == Taken([(3 * BLOCK_BYTES, 2 * BLOCK_BYTES)])


def _sysfs_of(disk: TrackedDisk, folder: Path) -> Path:
    (folder / "partition").mkdir()
    (folder / "partition/size").write_text(str(disk.source_bytes // 512))
    return folder / "partition"


def test_a_source_of_another_size_than_expected_is_untracked(loop_disk: MakeDisk) -> None:
    disk = loop_disk(16 * MIB)
    found = open_tracker(disk.device, 8 * MIB, BLOCK_BYTES)
    assert isinstance(found, Untracked)
    assert str(8 * MIB) in found.reason


def test_without_rights_the_source_is_untracked_and_the_reason_told(loop_disk: MakeDisk) -> None:
    disk = loop_disk(16 * MIB)
    program = f"from agent.tracking import open_tracker\nprint(open_tracker({disk.device!r}, {16 * MIB}, 65536))"
    told = subprocess.run(
        ["setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.startswith("Untracked(")
    assert "not permitted" in told.stdout


def test_closing_leaves_nothing_in_the_kernel(loop_disk: MakeDisk) -> None:
    disk = loop_disk(16 * MIB)

    def descriptors() -> list[str]:
        links = [entry.readlink() for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
        return [str(link) for link in links if "bpf" in str(link)]

    tracker = disk.tracker()
    assert len([name for name in descriptors() if "prog" in name]) == 3
    tracker.close()
    tracker.close()
    assert descriptors() == []
    assert "bpf-map" not in Path("/proc/self/maps").read_text()
