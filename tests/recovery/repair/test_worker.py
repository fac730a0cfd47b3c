"""The worker: what comes through its port is exact, bounded and believed no more than a disk."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.protocol.errors import RecoveryError
from recovery.repair.worker import CommandFailed, Worker
from recovery.sites.local.tools import processes
from tests.patience import PATIENCE_SECONDS, eventually
from tests.recovery.repair.images import REPOSITORY, run

pytestmark = [pytest.mark.qemu, pytest.mark.long]


@pytest.fixture
def disk(worker_parts: None, tmp_path: Path) -> Path:
    path = tmp_path / "disk.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", str(path), "8M")
    return path


def workers_of(disk: Path) -> list[int]:
    return [pid for pid, arguments in processes() if any(str(disk) in argument for argument in arguments)]


def test_bytes_go_in_and_come_out_as_they_are_and_reach_the_disk(disk: Path) -> None:
    content = random.Random(7).randbytes(3_000_001)
    with Worker([disk], "tcg") as worker:
        worker.put(content, "/it's here")
        assert worker.run("cat", "/it's here") == content
        worker.put(b"", "/empty")
        assert worker.run("stat", "-c", "%s", "/empty") == b"0\n"
        with pytest.raises(CommandFailed, match="can't open") as failed:
            worker.run("cat", "/nothing")
        assert failed.value.status == 1
        assert worker.shell("ls /sys/class/net").split() == [b"lo"], "it has no network"
        worker.run("dd", "if=/it's here", "of=/dev/vda", "conv=notrunc")
        worker.power_off()
    raw = disk.with_suffix(".raw")
    run("qemu-img", "convert", "-O", "raw", str(disk), str(raw))
    assert raw.read_bytes().startswith(content)
    assert workers_of(disk) == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("poweroff -f; sleep 600", "ended"),
        ("echo garbage >&3", "no answer"),
        ("echo 0 99999999999 0 >&3", "wants to send"),
        ("yes >&3", "no answer"),
        ("sleep 600", "took too long"),
        ("echo c >/proc/sysrq-trigger", "ended"),
    ],
)
def test_a_worker_that_was_taken_over_or_died_is_one_clear_error(disk: Path, line: str, said: str) -> None:
    limit_seconds = 10 if said == "took too long" else PATIENCE_SECONDS
    with Worker([disk], "tcg") as worker, pytest.raises(RecoveryError, match=said):
        worker.shell(line, limit_seconds=limit_seconds)
        worker.shell("true", limit_seconds=limit_seconds)
    assert workers_of(disk) == []


def test_a_repair_that_is_given_up_ends_its_worker(disk: Path) -> None:
    asked: list[bool] = []
    stopped: Callable[[], bool] = lambda: bool(asked)  # noqa: E731
    with Worker([disk], "tcg", stopped) as worker:
        asked.append(True)
        with pytest.raises(RecoveryError, match="was stopped"):
            worker.shell("sleep 60")
    assert workers_of(disk) == []


def test_a_worker_dies_with_the_service_that_started_it(disk: Path) -> None:
    program = (
        "import sys, pathlib; from recovery.repair.worker import Worker\n"
        "with Worker([pathlib.Path(sys.argv[1])], 'tcg') as worker:\n"
        "    print('up', flush=True); worker.shell('sleep 600', limit_seconds=600)\n"
    )
    temporary = disk.parent / "temporary"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary)}
    service = subprocess.Popen(
        [sys.executable, "-c", program, str(disk)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, env=environment
    )
    assert service.stdout is not None
    assert service.stdout.readline() == "up\n"
    assert len(workers_of(disk)) >= 1
    service.send_signal(signal.SIGKILL)
    service.wait()
    service.stdout.close()
    eventually(lambda: not workers_of(disk))
    assert list(temporary.iterdir()) == []
