"""What people read of runs."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from agent.protocol.errors import RecoveryError
from service.cli.client import Service
from service.cli.following import changed_since, finish, until_ended
from service.cli.output import fitted, say
from service.cli.plans import findings_lines
from service.cli.showing import now_text, servers_lines, stale_text, steps_text, ways_on
from service.cli.sources import what_becomes_of_them, what_is_lost
from service.cli.text import table

RUN: dict[str, Any] = {
    "id": "failover-1",
    "kind": "failover",
    "plan": "shop",
    "state": "failed",
    "committed_at": None,
    "rollback_until": None,
    "not_called_off": None,
    "warnings": [],
    "expires_at": None,
    "instances": [
        {"id": "i-1", "server": "db01", "state": "running", "addresses": {"80": "127.0.0.1:4000"}},
        {"id": "i-2", "server": "web01", "state": "running", "addresses": {}},
        {"id": "i-3", "server": "web02", "state": "pending", "addresses": {}},
    ],
}


def step(name: str, state: str, instance: str | None = None, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "action": name.split()[0],
        "instance": instance,
        "state": state,
        "optional": False,
        "seconds": None if state in ("pending", "running") else 1.0,
        "error": "no answer\nits console" if state == "failed" else None,
        "waits_for": None,
        "result": {},
        "description": name,
        **more,
    }


STEPS = [
    step("launch db01", "done", "i-1"),
    step("gate db01", "done", "i-1", result={"note": "quick"}),
    step("launch web01", "done", "i-2"),
    step("gate web01", "failed", "i-2"),
    step("launch web02", "pending", "i-3"),
]


def run(**changes: Any) -> dict[str, Any]:
    return {**RUN, "steps": STEPS, **changes}


def test_a_run_is_told_step_by_step_and_server_by_server() -> None:
    assert steps_text(run()).splitlines() == [
        "[1/5] launch db01: done, 1.0 s",
        "[2/5] gate db01: done, 1.0 s",
        "      quick",
        "[3/5] launch web01: done, 1.0 s",
        "[4/5] gate web01: FAILED, 1.0 s",
        "      no answer",
        "      its console",
        "[5/5] launch web02: not begun",
    ]
    assert servers_lines(run()) == [
        "  db01: works, port 80 is at 127.0.0.1:4000",
        "  web01: running, but 'gate web01' failed",
        "  web02: not launched",
    ]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "at 'gate web01'"),
        ({"state": "running", "steps": [step("gate web01", "running")]}, "gate web01"),
        ({"state": "running", "steps": [step("a", "running"), step("b", "running")]}, "a and 1 more"),
        ({"state": "running", "steps": [step("a", "pending")]}, "begins"),
        ({"state": "ending"}, "is being removed"),
        ({"state": "ending", "steps": [step("a", "failed", waits_for="the disk")]}, "the disk"),
        ({"state": "succeeded", "kind": "drill", "expires_at": 0.0}, "ends at 1970-01-01T00:00:00Z"),
        ({"state": "succeeded", "rollback_until": 4e9}, "rollback until 2096-10-02T07:06:40Z"),
        ({"state": "succeeded", "rollback_until": 1.0}, ""),
        ({"state": "succeeded", "committed_at": 1.0}, "committed"),
        ({"state": "ended"}, ""),
    ],
)
def test_the_list_says_what_goes_on(changes: dict[str, Any], expected: str) -> None:
    assert now_text(run(**changes)) == expected


def test_a_failed_run_says_how_to_go_on_and_never_offers_to_pass_over_a_source() -> None:
    assert [way.split(":")[0] for way in ways_on(run())] == [
        "try again",
        "go on without what failed",
        "remove what it made",
    ]
    unfenced = step("fence_source of web01", "failed")
    assert not any("--go-on" in way for way in ways_on(run(steps=[unfenced])))
    assert not any("--go-on" in way for way in ways_on(run(kind="failback")))
    passed = step("gate web01", "failed", optional=True)
    assert not any("--go-on" in way for way in ways_on(run(steps=[passed])))
    assert [way for way in ways_on(run(steps=[passed, unfenced])) if "--go-on" in way] == []


def test_a_machine_that_came_back_stale_is_told_with_what_it_stopped() -> None:
    assert stale_text({"name": "web01", "stale": None}) == ""
    stale = {"machine": "m-1", "since": "2030-01-01T00:00:00.123Z", "seen_at": "2030-01-01T00:00:05Z", "stopped": None}
    told = stale_text({"name": "web01", "stale": stale})
    assert told.startswith(
        "web01: machine m-1 is not the server now, and was told to stand down at 2030-01-01T00:00:00Z"
    )
    assert told.endswith("see to it that clients do not reach it")
    assert stale_text({"name": "web01", "stale": {**stale, "stopped": "nginx"}}).endswith("what it stopped: nginx")


def test_what_has_changed_since_it_was_shown_is_told() -> None:
    assert changed_since(run(), run()) == []
    newer = [{**STEPS[0], "description": "boot another point"}, *STEPS[1:]]
    assert changed_since(run(), run(steps=newer)) == ["changed since it was shown: 1. boot another point"]
    assert changed_since(run(), run(steps=STEPS[:1]))[0] == "it has changed since it was shown:"
    assert changed_since(run(), run(id="failback-9")) == ["failback-9 was begun before, and goes on"]


class Servers:
    """A service that knows servers."""

    def get(self, path: str) -> list[dict[str, Any]]:
        assert path == "/api/v1/servers"
        now = datetime.now(UTC).isoformat()
        return [
            {"name": "db01", "last_seen_at": now, "last_point": "pt-1", "lag_seconds": 600.0},
            {"name": "web01", "last_seen_at": None, "last_point": "pt-2", "lag_seconds": 5.0},
            {"name": "other", "last_seen_at": now, "last_point": None, "lag_seconds": None},
        ]


def test_who_confirms_a_failover_is_told_whose_source_is_declared_dead_and_whose_is_stopped() -> None:
    service = cast("Service", Servers())
    takeovers = [{"action": "hand_to_instance", "server": name} for name in ("db01", "web01")]
    said = what_becomes_of_them(service, {"steps": takeovers})
    assert said.startswith("db01 is not dead: its agent was heard 0.")
    assert said.endswith("you declare dead: db01, web01; nothing from there is taken any more")
    fenced = [{"action": "fence_source", "server": "db01"}, *takeovers]
    assert what_becomes_of_them(service, {"steps": fenced}) == (
        "you declare dead: web01; nothing from there is taken any more; stopped by their own agents first: db01"
    )
    many = [{"action": "hand_to_instance", "server": f"s{number}"} for number in range(14)]
    assert "s8, s9 and 4 more" in what_becomes_of_them(service, {"steps": many})


def test_what_a_rollback_loses_is_told_of_each_server() -> None:
    lost = what_is_lost(cast("Service", Servers()), run())
    assert lost == "what db01 did since pt-1 (10 min ago), what web01 did since pt-2 (5.0 s ago)"


def test_findings_share_their_way_out_and_say_what_their_colours_mean() -> None:
    never = [{"level": "amber", "text": f"{name} was never booted here", "hint": "panic shop --drill"} for name in "ab"]
    assert findings_lines(never) == [
        "  amber: a was never booted here",
        "  amber: b was never booted here",
        "      panic shop --drill",
        "  (amber means: it would work, and somebody should know this before)",
    ]
    assert findings_lines([]) == []


def test_what_servers_say_drives_nobodys_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [["web01", "\x1b[31mred\x1b]0;title\x07"], ["лавка", "\u202egnp.exe"]]
    say(table(["SERVER", "LABEL"], rows, ""))
    assert capsys.readouterr().out.splitlines() == [
        "SERVER  LABEL",
        "web01   \ufffd[31mred\ufffd]0;title\ufffd",
        "лавка   \ufffdgnp.exe",
    ]


def test_on_a_terminal_lines_are_broken_between_words_and_set_in() -> None:
    text = "short\n  amber: web01 was never booted, see understudy panic web01 --drill\n"
    assert fitted(text, 40).split("\n") == [
        "short",
        "  amber: web01 was never booted, see",
        "      understudy panic web01 --drill",
        "",
    ]
    assert fitted(text, 200) == text
    assert fitted("x" * 50, 40) == "x" * 50, "what is one word is kept as it is"


def test_a_failback_that_could_not_be_called_off_has_its_own_ways_on() -> None:
    stuck = run(kind="failback", id="failback-1", not_called_off="no memory")
    with pytest.raises(RecoveryError, match=r"failback-1 cannot be called off: no memory \(try again to call it off: "):
        until_ended(argparse.Namespace(json=False), cast("Service", None), stuck)
    assert ways_on(stuck) == [
        "try again to call it off: understudy retry failback-1",
        "leave everything as it is now: understudy retry failback-1 --go-on (who is the server: understudy servers)",
    ]


def test_a_warning_is_told_of_a_run_that_succeeded_and_a_failback_that_was_called_off_is_no_failure(
    capsys: pytest.CaptureFixture[str],
) -> None:
    quiet = argparse.Namespace(json=False)
    finish(quiet, run(state="succeeded", rto_seconds=3.0, price=None, warnings=["repair web01: it cannot be read"]))
    assert "  warning, though every gate held: repair web01: it cannot be read\n" in capsys.readouterr().out
    finish(quiet, run(kind="failback", id="failback-1", state="ended"))
    assert "failback-1 was called off, and has ended" in capsys.readouterr().out
