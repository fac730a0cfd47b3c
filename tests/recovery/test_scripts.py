from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.protocol.errors import NotFound, RecoveryError
from recovery.clock import SystemClock
from recovery.scripts import Scripts
from tests.patience import PATIENCE_SECONDS, eventually

Make = Callable[[str, str], None]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def made(name: str, text: str) -> None:
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)

    return made


def run(
    folder: Path, *argv: str, seconds: float = PATIENCE_SECONDS, interrupt: threading.Event | None = None
) -> str | None:
    facts = {"servers": [{"server": "web01"}]}
    stop = interrupt or threading.Event()
    return Scripts(folder).run(argv, {"UNDERSTUDY_RUN": "drill-1"}, facts, seconds, SystemClock(), stop)


def test_a_script_gets_its_arguments_its_environment_and_the_facts(tmp_path: Path, make: Make) -> None:
    make("tell", 'echo "$1 $UNDERSTUDY_RUN"; cat')
    assert run(tmp_path, "tell", "a b; c") == 'a b; c drill-1\n{"servers": [{"server": "web01"}]}'


def test_a_script_does_not_see_the_services_environment(
    tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNDERSTUDY_TOKEN", "secret")
    make("show", "env")
    assert "secret" not in (run(tmp_path, "show") or "")


def test_a_script_that_fails_says_its_status_and_the_end_of_its_output(tmp_path: Path, make: Make) -> None:
    make("fail", "echo no route to the name server >&2; exit 3")
    with pytest.raises(RecoveryError, match="fail ended with exit status 3") as caught:
        run(tmp_path, "fail")
    assert "  | no route to the name server" in caught.value.message


def test_a_script_that_takes_too_long_is_killed_with_what_it_started(tmp_path: Path, make: Make) -> None:
    make("slow", f"sleep 600 & echo $! > {tmp_path}/pid; wait")
    for seconds in (0.5, 60.0):  # a machine that stood still killed it before it had started anything
        with pytest.raises(RecoveryError, match=rf"took longer than {seconds:g} s"):
            run(tmp_path, "slow", seconds=seconds)
        if written := (tmp_path / "pid").exists() and (tmp_path / "pid").read_text():
            break
    assert written
    eventually(lambda: state_of(int(written)) in ("gone", "Z"))


def state_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "gone"


def test_an_interrupted_script_is_killed_and_has_no_result(tmp_path: Path, make: Make) -> None:
    make("slow", "exec sleep 600")
    interrupt = threading.Event()
    interrupt.set()
    assert run(tmp_path, "slow", interrupt=interrupt) is None


@pytest.mark.parametrize("name", ["absent", "../sh", "/bin/sh", "..", "", "plain"])
def test_only_executables_of_the_folder_are_run(tmp_path: Path, make: Make, name: str) -> None:
    make("there", "true")
    (tmp_path / "plain").write_text("no program")
    with pytest.raises(NotFound, match="there are: there"):
        run(tmp_path, name)


def test_what_cannot_be_executed_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "broken"
    path.write_bytes(b"\x7fELF garbage")
    os.chmod(path, 0o755)
    with pytest.raises(RecoveryError, match="script broken"):
        run(tmp_path, "broken")
