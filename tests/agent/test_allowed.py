from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agent.allowed import FILE, allow, allowed, run_allowed
from agent.cli import main
from agent.protocol.errors import Conflict, RecoveryError, UsageError
from agent.state import State


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State(tmp_path / "state")


def test_no_command_is_allowed_at_first(state: State) -> None:
    assert allowed(state) == {}
    with pytest.raises(Conflict, match="allows no command 'db-ready'"):
        run_allowed(state, "db-ready")


def test_a_command_that_was_allowed_runs_without_a_shell(state: State) -> None:
    allow(state, "say", ["echo", "$HOME; ls"])
    assert run_allowed(state, "say") == "$HOME; ls"
    allow(state, "say", [])
    assert allowed(state) == {}


def test_a_command_that_fails_says_how(state: State) -> None:
    allow(state, "fail", ["sh", "-c", "echo no database; exit 3"])
    with pytest.raises(RecoveryError, match="fail ended with exit status 3: no database"):
        run_allowed(state, "fail")
    allow(state, "absent", ["/nowhere/at/all"])
    with pytest.raises(RecoveryError, match="absent cannot be run"):
        run_allowed(state, "absent")


@pytest.mark.parametrize("name", ["", "a/b", "a b", ".", "x" * 101])
def test_a_name_that_could_mean_something_else_is_refused(state: State, name: str) -> None:
    with pytest.raises(UsageError):
        allow(state, name, ["true"])


@pytest.mark.parametrize("content", ["[", "[]", '{"a": "ls"}', '{"a": []}', '{"a": [1]}'])
def test_a_damaged_file_allows_nothing(state: State, content: str) -> None:
    state.make()
    (state.folder / FILE).write_text(content)
    with pytest.raises(UsageError):
        run_allowed(state, "a")


def test_the_command_line_shows_adds_and_removes(state: State, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(state.folder)
    assert main(["allow", "--state", folder]) == 0
    assert "no command" in capsys.readouterr().out
    assert main(["allow", "--state", folder, "db-ready", "--", "pg_isready", "-q"]) == 0
    assert capsys.readouterr().out == "db-ready: pg_isready -q\n"
    assert main(["allow", "db-ready", "--remove", "--state", folder]) == 0
    assert main(["allow", "db-ready", "--state", folder]) == 1


def test_the_daemon_reports_what_an_allowed_command_said(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    import agent.daemon
    from agent.daemon import _Daemon
    from agent.protocol.messages import Command

    sent: list[tuple[str, bytes]] = []

    class Client:
        async def __aenter__(self) -> Client:
            return self

        async def __aexit__(self, *_: object) -> None:
            return None

        async def call(self, method: str, path: str, body: list[bytes], kind: str) -> None:
            sent.append((path, b"".join(body)))

    monkeypatch.setattr(agent.daemon.ServiceClient, "of", lambda state: Client())
    allow(state, "say", ["echo", "fine"])
    daemon = _Daemon(state)
    asyncio.run(daemon._obey(Command(id="c-1", kind="exec", label="say")))
    asyncio.run(daemon._obey(Command(id="c-2", kind="exec", label="other")))
    assert sent[0] == (
        "/agent/v1/commands/c-1",
        b'{"command": "c-1", "point": null, "output": "fine", "error": null}',
    )
    assert b"allows no command" in sent[1][1]
