"""Tracker and freeze together, as a push uses them: read everything, follow what changes, freeze, read the rest."""

from __future__ import annotations

import mmap
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.consistency.freeze import Freeze
from agent.tracking import Taken
from agent.volumes.topology import mounted_filesystems

from .conftest import LoopDisk, run

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="freezing needs root")]

MIB = 1 << 20


def write_until(stop: threading.Event, where: Path, rng: random.Random) -> None:
    """Keeps files changing: overwrites, appends, makes and removes."""
    file = where / f"busy{rng.randrange(1 << 30)}"
    file.write_bytes(bytes(8 * MIB))
    rounds = 0
    while not stop.is_set():
        with open(file, "r+b") as busy:
            for _ in range(20):
                busy.seek(rng.randrange(8 * MIB - 20_000))
                busy.write(rng.randbytes(rng.randrange(1, 20_000)))
            if rounds % 5 == 0:
                busy.flush()
                os.fsync(busy.fileno())
        small = where / f"small{rng.randrange(200)}"
        if small.exists():
            small.unlink()
        else:
            small.write_bytes(rng.randbytes(rng.randrange(9000)))
        rounds += 1
        stop.wait(0.002)


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(2, 12))])
def test_a_copy_of_a_busy_filesystem_equals_it_at_the_instant_of_the_freeze(
    seed: int, loop_disk: Callable[..., LoopDisk], mounted: Callable[[LoopDisk, str], Path], tmp_path: Path
) -> None:
    disk = loop_disk(96 * MIB)
    where = mounted(disk, "ext4")
    rng = random.Random(seed)
    stop = threading.Event()
    writers = [threading.Thread(target=write_until, args=(stop, where, random.Random(rng.random()))) for _ in range(2)]
    source = os.open(disk.device, os.O_RDONLY | os.O_DIRECT)
    buffer, copy = mmap.mmap(-1, disk.size_bytes), bytearray(disk.size_bytes)

    def copy_ranges(taken: Taken) -> int:
        for offset, length in taken.ranges:
            assert os.preadv(source, [memoryview(buffer)[:length]], offset) == length
            copy[offset : offset + length] = buffer[:length]
        return sum(length for _, length in taken.ranges)

    try:
        with disk.tracker() as tracker, Freeze(mounted_filesystems(disk.device), limit_seconds=600) as freeze:
            for writer in writers:
                writer.start()
            copy_ranges(Taken([(0, disk.size_bytes)]))
            copied = 0
            for _ in range(4):
                freeze.prepare()
                copied += copy_ranges(tracker.take())
            freeze.freeze()
            try:
                copied += copy_ranges(tracker.take())
                os.preadv(source, [buffer], 0)
                equal = copy == buffer[:]
                nothing_more = tracker.take()
            finally:
                held = freeze.thaw().held
        assert held
        assert equal
        assert nothing_more == Taken([])
        assert copied > 0
    finally:
        stop.set()
        for writer in writers:
            if writer.ident is not None:
                writer.join()
        os.close(source)
        buffer.close()
    replica = tmp_path / "replica.img"
    replica.write_bytes(copy)
    # A frozen ext4 has an empty journal: nothing to repair, and nothing to replay.
    run("e2fsck", "-fn", replica)
