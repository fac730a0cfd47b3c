"""Every 64 KiB block whose bytes differ between two images of a disk must be in what was taken in between."""

from __future__ import annotations

import dataclasses
import mmap
import os
import random
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
SIZES = {"ext4": 96 * MIB, "xfs": 320 * MIB, "raw": 64 * MIB}
MakeDisk = Callable[..., LoopDisk]
Mount = Callable[[LoopDisk, str], Path]
Act = Callable[[Path, random.Random], None]


def changed_blocks(before: dict[int, bytes], after: dict[int, bytes]) -> set[int]:
    return {block for block in before.keys() | after.keys() if before.get(block) != after.get(block)}


def blocks_of(taken: Taken) -> set[int]:
    assert taken.lost is None, taken.lost
    return {
        block
        for offset, length in taken.ranges
        for block in range(offset // BLOCK_BYTES, -(-(offset + length) // BLOCK_BYTES))
    }


# --- what a filesystem's user does; `where` is the mounted folder --------------------------------------------------


def file_of(where: Path, size_bytes: int = 12 * MIB) -> Path:
    file = where / "file"
    if not file.exists():
        with open(file, "wb") as new:
            new.truncate(size_bytes)
    return file


def aligned(content: bytes) -> mmap.mmap:
    buffer = mmap.mmap(-1, len(content))  # O_DIRECT wants memory that is aligned
    buffer[:] = content
    return buffer


def scatter(path: Path, rng: random.Random, flags: int, unit: int, writes: int) -> None:
    """Random writes at multiples of `unit`, of one to eight units each."""
    fd = os.open(path, os.O_RDWR | flags)
    try:
        units = os.lseek(fd, 0, os.SEEK_END) // unit
        for _ in range(writes):
            count = rng.randrange(1, 9)
            buffer = aligned(rng.randbytes(count * unit))
            os.pwrite(fd, buffer, rng.randrange(0, units - count) * unit)
            buffer.close()
        os.fsync(fd)
    finally:
        os.close(fd)


def buffered(where: Path, rng: random.Random) -> None:
    scatter(file_of(where), rng, 0, 1000, 60)


def mapped(where: Path, rng: random.Random) -> None:
    with open(file_of(where), "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        for _ in range(60):
            memory[rng.randrange(len(memory))] = rng.randrange(256)
        memory.flush()


def direct(where: Path, rng: random.Random) -> None:
    scatter(file_of(where), rng, os.O_DIRECT, 4096, 60)


def synchronous(where: Path, rng: random.Random) -> None:
    scatter(file_of(where), rng, os.O_SYNC, 1000, 20)


def sequential(where: Path, rng: random.Random) -> None:
    (where / f"big{rng.randrange(3)}").write_bytes(rng.randbytes(8 * MIB))


def punch(where: Path, rng: random.Random) -> None:
    run("fallocate", "-p", "-o", str(rng.randrange(4 * MIB)), "-l", str(rng.randrange(1, 6 * MIB)), file_of(where))


def zero_range(where: Path, rng: random.Random) -> None:
    run("fallocate", "-z", "-o", str(rng.randrange(4 * MIB)), "-l", str(rng.randrange(1, 6 * MIB)), file_of(where))


def many_small_files(where: Path, rng: random.Random) -> None:
    folder = where / "small"
    folder.mkdir(exist_ok=True)
    for _ in range(150):
        (folder / str(rng.randrange(1000))).write_bytes(rng.randbytes(rng.randrange(300)))
    for old in rng.sample(sorted(folder.iterdir()), 40):
        old.unlink()


def delete_and_trim(where: Path, rng: random.Random) -> None:
    for big in where.glob("big*"):
        big.unlink()
    run("sync", "-f", where)
    run("fstrim", where)


FILESYSTEM_ACTS: list[Act] = [
    buffered,
    mapped,
    direct,
    synchronous,
    sequential,
    punch,
    zero_range,
    many_small_files,
    delete_and_trim,
]


# --- what a raw disk's user does; `where` is the device --------------------------------------------------------------


def raw_sequential(where: Path, rng: random.Random) -> None:
    at = rng.randrange(40) * MIB
    run("dd", "if=/dev/urandom", f"of={where}", "bs=1M", "count=20", f"seek={at // MIB}", "oflag=direct")


def raw_direct(where: Path, rng: random.Random) -> None:
    scatter(where, rng, os.O_DIRECT, 4096, 60)


def raw_buffered(where: Path, rng: random.Random) -> None:
    scatter(where, rng, 0, 1000, 60)


def discard(where: Path, rng: random.Random) -> None:
    run("blkdiscard", "-o", str(rng.randrange(8000) * 4096), "-l", str(rng.randrange(1, 8000) * 4096), where)


def discard_with_zeros(where: Path, rng: random.Random) -> None:
    run("blkdiscard", "-z", "-o", str(rng.randrange(8000) * 4096), "-l", str(rng.randrange(1, 8000) * 4096), where)


def discard_all(where: Path, rng: random.Random) -> None:
    run("blkdiscard", "-f", where)


RAW_ACTS: list[Act] = [raw_sequential, raw_direct, raw_buffered, discard, discard_with_zeros, discard_all]


def battery(disk: LoopDisk, where: Path, tracker: ChangeTracker, acts: list[Act], rng: random.Random) -> None:
    """After each act: nothing that differs was missed."""
    seen: set[int] = set()
    for act in acts:
        tracker.take()
        before = disk.blocks()
        act(where, rng)
        run("sync", "-f", where)
        disk.flush()
        after = disk.blocks()
        disk.flush()  # a background write may have been under way while the image was read
        changed, taken = changed_blocks(before, after), blocks_of(tracker.take())
        assert not changed - taken, f"{act.__name__} changed blocks {sorted(changed - taken)} unseen"
        seen |= changed
    assert len(seen) > 100


def check(kind: str, disk: LoopDisk, mounted: Mount, tracker: ChangeTracker, seed: int, length: int) -> None:
    rng = random.Random(seed)
    if kind == "raw":
        where, acts = Path(disk.device), RAW_ACTS
    else:
        where, acts = mounted(disk, kind), FILESYSTEM_ACTS
    battery(disk, where, tracker, acts + rng.choices(acts, k=length), rng)


@pytest.mark.parametrize("kind", ["ext4", "xfs", "raw"])
def test_no_changed_block_is_missed(kind: str, loop_disk: MakeDisk, mounted: Mount) -> None:
    disk = loop_disk(SIZES[kind])
    with disk.tracker() as tracker:
        check(kind, disk, mounted, tracker, seed=1, length=6)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", ["ext4", "xfs", "raw"])
def test_no_changed_block_is_missed_over_long_batteries(
    kind: str, seed: int, loop_disk: MakeDisk, mounted: Mount
) -> None:
    disk = loop_disk(SIZES[kind] * 2)
    with disk.tracker() as tracker:
        check(kind, disk, mounted, tracker, seed=seed, length=80)


@pytest.mark.parametrize("kind", ["ext4", "raw"])
def test_discards_of_scattered_ranges_are_walked_without_a_miss(kind: str, loop_disk: MakeDisk, mounted: Mount) -> None:
    # Loop devices allow one range only, so the walk gets what it would elsewhere, but never several in one request.
    disk = loop_disk(SIZES[kind])
    found = locate(disk.device)
    assert isinstance(found, TrackedDisk)
    with ChangeTracker(dataclasses.replace(found, discard_segments=256), BLOCK_BYTES) as tracker:
        check(kind, disk, mounted, tracker, seed=2, length=0)


def test_making_a_filesystem_is_tracked(loop_disk: MakeDisk) -> None:
    disk = loop_disk(SIZES["ext4"])
    with disk.tracker() as tracker:
        run("mkfs.ext4", "-q", "-F", disk.device)
        disk.flush()
        changed = changed_blocks({}, disk.blocks())
        assert changed
        assert changed <= blocks_of(tracker.take())


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


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.long), pytest.param(3, marks=pytest.mark.long)])
def test_a_copy_made_while_others_write_equals_the_disk_in_the_end(seed: int, loop_disk: MakeDisk) -> None:
    disk = loop_disk(32 * MIB)
    rng = random.Random(seed)
    source = os.open(disk.device, os.O_RDONLY | os.O_DIRECT)
    buffer, copy = mmap.mmap(-1, disk.size_bytes), bytearray(disk.size_bytes)

    def copy_ranges(taken: Taken) -> None:
        assert taken.lost is None
        for offset, length in taken.ranges:
            assert os.preadv(source, [memoryview(buffer)[:length]], offset) == length
            copy[offset : offset + length] = buffer[:length]

    rounds = 30 if seed == 1 else 300

    def write_all(own: random.Random, flags: int) -> None:
        for _ in range(rounds):
            scatter(Path(disk.device), own, flags, 4096, 10)

    writers = [
        threading.Thread(target=write_all, args=(random.Random(rng.random()), flags))
        for flags in (os.O_DIRECT, os.O_DIRECT, 0)
    ]
    try:
        with disk.tracker() as tracker:
            copy_ranges(Taken([(0, disk.size_bytes)]))
            for writer in writers:
                writer.start()
            takes = 0
            while any(writer.is_alive() for writer in writers):
                copy_ranges(tracker.take())
                takes += 1
            disk.flush()
            copy_ranges(tracker.take())
        assert takes > 3
        assert copy == disk.image.read_bytes()
    finally:
        for writer in writers:
            writer.join()
        os.close(source)
        buffer.close()


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
