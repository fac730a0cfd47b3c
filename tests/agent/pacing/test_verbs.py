"""`understudy-agent limit` and `priority`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent.cli import main
from agent.pacing.pace import Pace

ROOT = Path(__file__).parents[3]


def said(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: str) -> dict[str, object]:
    assert main(["--state", str(folder), *arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert isinstance(document, dict)
    return document


def test_a_limit_is_set_shown_and_lifted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, tmp_path, "limit") == {"bytes_a_second": None, "between": None}
    said(capsys, tmp_path, "limit", "20mbit", "--between", "00:00-23:59")
    assert said(capsys, tmp_path, "limit") == {"bytes_a_second": 2_500_000, "between": "00:00-23:59"}
    said(capsys, tmp_path, "limit", "2MB/s")
    assert Pace(tmp_path).rate == 2_000_000
    said(capsys, tmp_path, "limit", "none")
    assert Pace(tmp_path).rate is None


def test_limit_and_priority_do_not_undo_one_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, tmp_path, "limit", "1MB/s")
    said(capsys, tmp_path, "priority", "low")
    assert said(capsys, tmp_path, "limit")["bytes_a_second"] == 1_000_000
    said(capsys, tmp_path, "limit", "none")
    assert said(capsys, tmp_path, "priority") == {"priority": "low"}


def test_a_push_by_hand_keeps_the_priority_it_was_started_with_unless_one_was_set(tmp_path: Path) -> None:
    code = "import os, sys; from agent.cli import main; main(sys.argv[1:]); print(os.nice(0))"
    push = ["nice", "-n", "5", sys.executable, "-c", code, "--state", str(tmp_path), "push"]
    before = os.nice(0)
    for chosen, niceness in ((None, min(before + 5, 19)), ("low", 10)):
        if chosen:
            assert main(["--state", str(tmp_path), "priority", chosen]) == 0
        if niceness < before:
            continue  # only root may take back what this was started with
        ended = subprocess.run(push, cwd=ROOT, capture_output=True, text=True, check=False)
        assert ended.stdout == f"{niceness}\n"
        assert ended.stderr.count("\n") == 1, ended.stderr


@pytest.mark.parametrize("arguments", [["20"], ["2MB/s", "--between", "8"], ["none", "--between", "08:00-18:00"]])
def test_what_cannot_be_meant_is_one_line_and_changes_nothing(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--state", str(tmp_path), "limit", *arguments]) == 1
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
