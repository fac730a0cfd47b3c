"""Who gives the server away: a source that its own agent stops, one that is declared dead, and what undoes it."""

from __future__ import annotations

import pytest

from agent.protocol.errors import Conflict
from recovery.control import CommandState
from recovery.describe import describe
from recovery.ending import ROLLBACK_SECONDS
from recovery.planner import Order
from recovery.report import run_to_json
from recovery.runs import Run, RunKind, RunState
from tests.recovery.world import NOW, World

ALIVE = Order(alive=frozenset({"web01"}))


def take_over(world: World, kind: RunKind = RunKind.FAILOVER, order: Order = ALIVE) -> Run:
    return world.perform(world.plan(kind, order=order))


def test_a_source_that_lives_is_stopped_makes_its_last_point_and_that_one_is_booted(world: World) -> None:
    run = take_over(world)
    assert run.state is RunState.SUCCEEDED
    assert world.events == ["fence", "request a point", "hand to the instance", "boot web01"]
    (spec,) = world.site.specs.values()
    assert [point for _, point in spec.points] == [world.control.points("id-web01")[0].id] != ["p-web01-1"]
    assert run.launches()[0].result["point"] == world.control.points("id-web01")[0].id
    assert all(describe(step).startswith("web01: ") for step in run.steps)


@pytest.mark.parametrize(
    ("seen_seconds", "answer", "words"),
    [
        (None, CommandState(output="x"), "agent was last heard never"),
        (1000.0, CommandState(output="x"), "agent was last heard 1000 s ago"),
        (1.0, CommandState(), "did not answer within 120 s"),
        (1.0, CommandState(error="this server allows no command 'fence'"), "allows no command 'fence'"),
    ],
)
def test_nothing_boots_beside_a_source_that_neither_was_stopped_nor_declared_dead(
    world: World, seen_seconds: float | None, answer: CommandState, words: str
) -> None:
    world.control.change("id-web01", last_seen_seconds=seen_seconds)
    world.control.command_ends = answer
    run = take_over(world)
    assert run.state is RunState.FAILED
    assert words in (run.steps[0].error or "")
    assert "--declare-dead web01" in (run.steps[0].error or "")
    assert world.site.instances() == []
    assert world.control.server("acme", "web01").epoch == 1


def test_a_source_that_was_stopped_for_nothing_is_released_when_the_run_is_ended(world: World) -> None:
    world.control.agent_answers = False  # so there is no last point
    run = take_over(world)
    assert run.state is RunState.FAILED
    world.executor.end(run.id)
    assert world.executor.wait(run.id).state is RunState.ENDED
    assert world.events == ["fence", "request a point", "release"]


def test_who_was_overtaken_between_plan_and_fence_boots_nothing(world: World) -> None:
    run = world.plan(RunKind.FAILOVER)
    world.control.change("id-web01", epoch=7)
    assert world.perform(run).state is RunState.FAILED
    assert "changed hands" in (world.store.get(run.id).steps[0].error or "")
    assert world.site.instances() == []


def test_a_failover_is_rolled_back_to_its_source_with_a_new_epoch(world: World) -> None:
    run = world.fail_over()
    told = run_to_json(run, {}, NOW)
    assert told["rollback_until"] == run.created_at + ROLLBACK_SECONDS
    world.executor.roll_back(run.id)
    assert world.executor.wait(run.id).state is RunState.ENDED
    server = world.control.server("acme", "web01")
    assert (server.state, server.epoch, server.owner) == ("protected", 3, "home")
    assert world.site.instances() == []
    assert [point.id for point in world.control.points("id-web01")] == ["p-web01-1"]


def test_what_was_committed_or_is_too_old_is_not_rolled_back(world: World) -> None:
    run = world.fail_over()
    world.executor.commit(run.id)
    world.executor.commit(run.id)
    assert [line for line in world.control.audits if "committed" in line] == [
        f"run.failover: {run.id} of web01: committed"
    ]
    assert run_to_json(world.store.get(run.id), {}, NOW)["rollback_until"] is None
    with pytest.raises(Conflict, match="was committed"):
        world.executor.roll_back(run.id)
    world.store.rows[run.id]["committed_at"] = None
    world.clock.seconds += ROLLBACK_SECONDS + 1
    with pytest.raises(Conflict, match="began more than 24 h ago"):
        world.executor.roll_back(run.id)
    drill = world.perform(world.plan(RunKind.DRILL))
    with pytest.raises(Conflict, match="only a failover"):
        world.executor.roll_back(drill.id)
    with pytest.raises(Conflict, match="can be committed"):
        world.executor.commit(drill.id)


def test_a_migration_has_no_way_back_and_is_a_server_like_any_other_afterwards(world: World) -> None:
    run = take_over(world, RunKind.MIGRATE)
    assert run.state is RunState.SUCCEEDED
    assert world.events[-1] == "retire the source"
    assert world.control.server("acme", "web01").state == "protected"
    with pytest.raises(Conflict, match="only a failover can be brought home"):
        world.plan_failback(run)
    with pytest.raises(Conflict, match="all that web01 did"):
        world.executor.end(run.id)
    assert world.fail_over().state is RunState.SUCCEEDED, "it may be lost again"


def test_a_migration_that_failed_keeps_others_away_until_it_is_ended_which_gives_the_server_back(world: World) -> None:
    world.site.console_text = "panic"
    run = take_over(world, RunKind.MIGRATE)
    assert run.state is RunState.FAILED
    with pytest.raises(Conflict, match=f"is being migrated by {run.id}"):
        world.executor.start(world.plan(RunKind.FAILOVER))
    world.executor.end(run.id, force=True)
    assert world.executor.wait(run.id).state is RunState.ENDED
    assert world.control.server("acme", "web01").owner == "home"


def test_clones_are_isolated_have_identities_of_their_own_and_touch_nobody(world: World) -> None:
    world.fail_over()
    run = take_over(world, RunKind.CLONE, Order(copies=3))
    assert run.state is RunState.SUCCEEDED
    clones = [world.site.specs[launch.args["instance_id"]] for launch in run.launches()]
    assert {clone.network.value for clone in clones} == {"isolated"}
    assert len({clone.machine_id for clone in clones}) == len({clone.instance_id for clone in clones}) == 3
    assert [step.name for step in run.launches()] == [f"launch web01 (copy {copy})" for copy in (1, 2, 3)]
    assert world.control.server("acme", "web01").epoch == 2
    world.executor.end(run.id)
    assert world.executor.wait(run.id).state is RunState.ENDED
    assert len(world.site.instances()) == 1
