"""A repair target is told what its part of the failback is, at each of its steps."""

from __future__ import annotations

import pytest

from recovery.guidance import guidance
from recovery.homeward import plan_failback
from recovery.runs import Run, RunState, StepState
from tests.recovery.world import World

WEB01 = "id-web01"


def asked(world: World) -> tuple[str, str | None]:
    told = guidance(world.store.runs(), WEB01, "web01")
    return told.action, told.point


def test_without_a_failback_there_is_nothing_to_do_but_to_begin_one(world: World) -> None:
    assert asked(world) == ("none", None)
    world.fail_over()
    told = guidance(world.store.runs(), WEB01, "web01")
    assert told.action == "none"
    assert "understudy failback" in told.words


def test_it_is_told_to_wait_pull_wait_pull_and_boot(world: World) -> None:
    failover = world.fail_over()
    world.people_at_home_do_their_part()
    people = world.clock.on_wait
    said: list[tuple[str, str | None]] = []

    def listen() -> None:
        said.append(asked(world))
        if people is not None:
            people()

    world.clock.on_wait = listen
    back = world.perform(world.plan_failback(failover))
    assert back.state is RunState.SUCCEEDED
    told = [one for one in dict.fromkeys(said) if one[0] not in ("wait", "none")]
    assert told == [
        ("pull", "p-agent-1"),
        ("pull", "p-final-1"),
        ("boot", "p-final-1"),
    ]
    assert asked(world) == ("none", None), "it is home"
    assert guidance(world.store.runs(), "id-db01", "db01").action == "none"


def test_while_a_failback_holds_it_is_told_to_wait_for_whom(world: World) -> None:
    failover = world.fail_over()
    world.people_at_home_do_their_part()
    people = world.clock.on_wait
    server = world.control.server("acme", "web01")
    run = plan_failback(failover, server, world.ids, world.clock.now(), hold=True)
    said: list[tuple[str, str | None]] = []
    words: set[str] = set()

    def listen() -> None:
        said.append(asked(world))
        told = guidance(world.store.runs(), WEB01, "web01").words
        if "understudy commit" in told:
            words.add(told)
            world.executor.commit(run.id)
        people()

    world.clock.on_wait = listen
    assert world.perform(run).state is RunState.SUCCEEDED
    assert words == {f"web01 is copied and goes on working; to cut over: understudy commit {run.id}"}
    assert [one for one in dict.fromkeys(said) if one[0] in ("pull", "boot")] == [
        ("pull", "p-agent-1"),
        ("pull", "p-agent-2"),
        ("pull", "p-final-1"),
        ("boot", "p-final-1"),
    ]


def test_a_step_that_failed_is_told_with_its_reason_and_the_way_out(world: World) -> None:
    run = _failback(world)
    run.state = RunState.FAILED
    run.steps[0].state = StepState.FAILED
    run.steps[0].error = "the disk is full (make room)\ntraceback"
    told = guidance([run], WEB01, "web01")
    assert told.action == "wait"
    assert "the disk is full" in told.words
    assert "traceback" not in told.words
    assert f"understudy retry {run.id}" in told.words


@pytest.mark.parametrize("done", range(8))
def test_every_stage_has_words(world: World, done: int) -> None:
    run = _failback(world)
    for step in run.steps[:done]:
        step.state = StepState.DONE
        if step.action in ("take_point", "capture"):
            step.result = {"point": "p-1"}
    told = guidance([run], WEB01, "web01")
    assert told.words
    assert told.stage
    assert (told.action == "boot") == (done == 6)


def test_a_failback_that_is_called_off_says_so(world: World) -> None:
    run = _failback(world)
    run.state = RunState.ENDING
    told = guidance([run], WEB01, "web01")
    assert told.action == "wait"
    assert "called off" in told.words


def _failback(world: World) -> Run:
    run = world.plan_failback(world.fail_over())
    assert [step.action for step in run.steps][5:7] == ["hand_home", "await_home"]
    return run
