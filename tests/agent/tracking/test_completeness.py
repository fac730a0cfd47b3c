"""Every 64 KiB block whose bytes differ between two images of a disk must be in what was taken in between."""

from __future__ import annotations

import dataclasses
import mmap
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.tracking import ChangeTracker, Taken
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
    """In doubt these are all blocks: right as well, and it happens where a kernel skips the program (see ledger.py)."""
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


def scatter(
    path: Path, rng: random.Random, flags: int, unit: int, writes: int, part: tuple[float, float] = (0, 1)
) -> None:
    """Random writes at multiples of `unit`, of one to eight units each, between two fractions of the size."""
    fd = os.open(path, os.O_RDWR | flags)
    try:
        units = os.lseek(fd, 0, os.SEEK_END) // unit
        begin, end = (int(units * fraction) for fraction in part)
        for _ in range(writes):
            count = rng.randrange(1, 9)
            buffer = aligned(rng.randbytes(count * unit))
            os.pwrite(fd, buffer, rng.randrange(begin, end - count) * unit)
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
    doubts = 0
    for act in acts:
        tracker.take()
        before = disk.blocks()
        act(where, rng)
        run("sync", "-f", where)
        disk.flush()
        after = disk.blocks()
        disk.flush()  # a background write may have been under way while the image was read
        taken = tracker.take()
        changed = changed_blocks(before, after)
        doubts += taken.lost is not None
        assert not changed - blocks_of(taken), (
            f"{act.__name__} changed blocks {sorted(changed - blocks_of(taken))} unseen"
        )
        seen |= changed
    assert len(seen) > 100
    assert doubts < len(acts) // 2


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


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.long), pytest.param(3, marks=pytest.mark.long)])
def test_a_copy_made_while_others_write_equals_the_disk_in_the_end(seed: int, loop_disk: MakeDisk) -> None:
    disk = loop_disk(32 * MIB)
    rng = random.Random(seed)
    source = os.open(disk.device, os.O_RDONLY | os.O_DIRECT)
    buffer, copy = mmap.mmap(-1, disk.size_bytes), bytearray(disk.size_bytes)

    def copy_ranges(taken: Taken) -> None:
        for offset, length in taken.ranges:
            assert os.preadv(source, [memoryview(buffer)[:length]], offset) == length
            copy[offset : offset + length] = buffer[:length]

    rounds = 30 if seed == 1 else 300

    enough = threading.Event()

    def write_all(own: random.Random, flags: int, half: tuple[float, float]) -> None:
        done = 0
        while done < rounds or not enough.is_set():
            scatter(Path(disk.device), own, flags, 4096, 10, half)
            done += 1

    # Where writes round the page cache and through it meet, fsync may give EIO ("Page cache invalidation failure").
    writers = [
        threading.Thread(target=write_all, args=(random.Random(rng.random()), flags, half))
        for flags, half in ((os.O_DIRECT, (0, 0.5)), (os.O_DIRECT, (0, 0.5)), (0, (0.5, 1)))
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
                if takes > 3:
                    enough.set()
            disk.flush()
            copy_ranges(tracker.take())
        assert copy == disk.image.read_bytes()
    finally:
        enough.set()
        for writer in writers:
            if writer.ident is not None:
                writer.join()
        os.close(source)
        buffer.close()
