"""The bench runs from end to end on a small image. What it measures is not looked at here: machines differ."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.harness import nothing_left_behind

REPOSITORY = Path(__file__).resolve().parents[2]
TOOLS = ("mke2fs", "debugfs", "qemu-img")
MISSING = [tool for tool in TOOLS if shutil.which(tool, path="/usr/sbin:/sbin:/usr/bin:/bin") is None]


@pytest.mark.qemu
@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)} (make setup)")
def test_a_quick_bench_shows_every_comparison_and_leaves_only_its_results(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    left_before = set((REPOSITORY / ".cache").glob("bench-*"))
    command = [sys.executable, "-m", "bench", "--quick", "--only", "replication", "--out", results]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads(results.read_text())["replication"]
    replication, _, verifying = done.stdout.partition("## Verifying")
    shown = [line for line in replication.splitlines() if line.startswith("|")]
    assert len(shown) == len(rows) + 2
    assert "|" in verifying
    assert all(row["ratio"] is not None or row["missing"] for row in rows)
    assert set((REPOSITORY / ".cache").glob("bench-*")) <= left_before


@pytest.mark.qemu
@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)} (make setup)")
@pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="needs qemu-system-x86_64")
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: the way home is measured onto a loop device")
def test_runs_are_measured_from_the_press_to_the_last_byte_home(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    command = [sys.executable, "-m", "bench", "--quick", "--only", "runs", "--out", results]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads(results.read_text())["runs"]
    assert isinstance(rows, list), rows
    assert len([line for line in done.stdout.splitlines() if line.startswith("|")]) == len(rows) + 2
    assert all(row["ours"] is not None for row in rows)
    assert nothing_left_behind(REPOSITORY / ".cache/bench-") == []
