"""A machine that is not the server any more stops serving: once, and again after a reboot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.allowed import allow
from agent.fencing import FENCE, FILE, UNFENCE, Fencing
from agent.protocol.errors import Conflict, RecoveryError
from agent.state import State


@pytest.fixture
def state(tmp_path: Path) -> State:
    made = State(tmp_path / "state")
    made.make()
    return made


def noting(state: State, name: str, *, fails: bool = False) -> Path:
    """Allow a command that notes each of its runs."""
    note = state.folder.parent / name
    allow(state, name, ["/bin/sh", "-c", f"echo x >> {note}; echo {name} done; exit {int(fails)}"])
    return note


def runs(note: Path) -> int:
    return len(note.read_text().splitlines()) if note.exists() else 0


def test_standing_down_runs_the_command_once_and_says_what_it_did(state: State) -> None:
    note = noting(state, FENCE)
    fencing = Fencing(state)
    assert fencing.said is None
    fencing.stand_down(2)
    fencing.stand_down(2)
    assert (runs(note), fencing.said) == (1, "fence done")
    assert Fencing(state).said == "fence done", "a restart of the agent does not forget"


def test_a_machine_that_booted_again_is_fenced_again(state: State) -> None:
    note = noting(state, FENCE)
    Fencing(state).stand_down(2)
    document = json.loads((state.folder / FILE).read_bytes())
    (state.folder / FILE).write_text(json.dumps({**document, "boot_id": "another"}))
    Fencing(state).stand_down(2)
    assert runs(note) == 2


def test_without_a_command_it_says_that_nothing_was_stopped(state: State) -> None:
    fencing = Fencing(state)
    fencing.stand_down(2)
    assert "no command `fence` is allowed" in (fencing.said or "")
    with pytest.raises(Conflict, match="allows no command 'fence'"):
        fencing.put_up(2)


def test_a_command_that_fails_is_told_of_and_tried_again(state: State) -> None:
    note = noting(state, FENCE, fails=True)
    fencing = Fencing(state)
    fencing.stand_down(2)
    fencing.stand_down(2)
    assert runs(note) == 2
    assert "exit status 1" in (fencing.said or "")
    with pytest.raises(RecoveryError):
        fencing.put_up(2)
    assert fencing.now() is None


def test_a_fence_that_is_lifted_starts_the_services_again(state: State) -> None:
    noting(state, FENCE)
    note = noting(state, UNFENCE)
    fencing = Fencing(state)
    assert fencing.put_up(3) == "fence done"
    found = fencing.now()
    assert found is not None
    assert found.epoch == 3
    fencing.lift()
    fencing.lift()
    assert (runs(note), fencing.said, fencing.now()) == (1, None, None)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"epoch": 1}'])
def test_a_damaged_file_is_no_fence(state: State, content: str) -> None:
    (state.folder / FILE).write_text(content)
    assert Fencing(state).now() is None
