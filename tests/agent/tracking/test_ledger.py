from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.tracking.ledger import COUNTER_STRIDE_BYTES, Ledger

from .conftest import LoopDisk, run

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="BPF maps need root")]


@pytest.fixture
def disk(loop_disk: Callable[..., LoopDisk]) -> LoopDisk:
    return loop_disk(16 << 20)


@pytest.fixture
def stat(disk: LoopDisk) -> Path:
    return Path("/sys/class/block", Path(disk.device).name, "stat")


def write(disk: LoopDisk, blocks: int) -> None:
    run("dd", "if=/dev/urandom", f"of={disk.device}", "bs=4096", f"count={blocks}", "oflag=direct")


def count(ledger: Ledger, copy: int, sectors: int) -> None:
    """What the program does, for a test without one."""
    at = copy * COUNTER_STRIDE_BYTES
    (counted,) = struct.unpack_from("<Q", ledger._memory, at)
    struct.pack_into("<Q", ledger._memory, at, counted + sectors)


def test_requests_that_no_copy_saw_are_noticed_once(disk: LoopDisk, stat: Path) -> None:
    with Ledger(stat, copies=3) as ledger:
        ledger.begin()
        assert ledger.complete()
        write(disk, 3)
        assert not ledger.complete()
        assert ledger.complete()


def test_one_copy_that_saw_everything_is_enough(disk: LoopDisk, stat: Path) -> None:
    with Ledger(stat, copies=3) as ledger:
        ledger.begin()
        write(disk, 3)
        count(ledger, 0, 16)
        count(ledger, 2, 24)
        assert ledger.complete()
        write(disk, 1)
        count(ledger, 0, 8)  # what this copy missed before is not held against it again
        assert ledger.complete()


def test_copies_that_each_missed_something_else_are_doubt(disk: LoopDisk, stat: Path) -> None:
    with Ledger(stat, copies=2) as ledger:
        ledger.begin()
        write(disk, 3)
        count(ledger, 0, 16)
        count(ledger, 1, 8)
        assert not ledger.complete()


def test_discards_count_as_writes_do(disk: LoopDisk, stat: Path) -> None:
    with Ledger(stat, copies=1) as ledger:
        ledger.begin()
        run("blkdiscard", "-o", "4096", "-l", "8192", disk.device)
        assert not ledger.complete()


def test_reading_needs_no_counting(disk: LoopDisk, stat: Path) -> None:
    with Ledger(stat, copies=1) as ledger:
        ledger.begin()
        run("dd", f"if={disk.device}", "of=/dev/null", "bs=1M", "iflag=direct")
        assert ledger.complete()


def test_statistics_of_an_older_form_are_refused(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text(" 1 2 3 4 5 6 7 8 9 10 11\n")
    with Ledger(stat, copies=1) as ledger, pytest.raises(ValueError, match="discards"):
        ledger.begin()
