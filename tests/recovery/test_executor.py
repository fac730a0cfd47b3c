from __future__ import annotations

import threading
from typing import cast

import pytest

from agent.protocol.errors import Conflict, NotFound, SiteError
from agent.protocol.serials import volume_serial
from recovery.clock import SystemClock
from recovery.executor import Executor
from recovery.plans import parse_plan
from recovery.runs import RunKind, RunState, StepState
from recovery.sites.contract import Instance, InstanceSpec, InstanceState, NetworkMode, Site
from tests.patience import PATIENCE_SECONDS, eventually
from tests.recovery.world import FakeClock, World


def test_a_drill_boots_an_isolated_instance_and_ends_without_a_trace(world: World) -> None:
    run = world.perform(world.plan(RunKind.DRILL))
    assert run.state is RunState.SUCCEEDED
    (spec,) = world.site.specs.values()
    assert spec.network is NetworkMode.ISOLATED
    assert spec.points[0][1] == "p-web01-1"
    assert world.control.server("acme", "web01").epoch == 1

    world.executor.end(run.id)
    assert world.executor.wait(run.id).state is RunState.ENDED
    assert world.site.instances() == []
    world.executor.end(run.id)
    assert world.events == ["boot web01", "remove"]


def test_a_failover_raises_the_epoch_before_it_boots_on_the_real_network(world: World) -> None:
    run = world.fail_over()
    assert run.state is RunState.SUCCEEDED
    assert world.events == ["hand to the instance", "boot web01"]
    server = world.control.server("acme", "web01")
    (spec,) = world.site.specs.values()
    assert (server.epoch, server.owner, spec.network) == (2, spec.machine_id, NetworkMode.REAL)
    assert all(step.state is StepState.DONE and step.ended_at is not None for step in run.steps)


def test_an_instances_disks_have_serial_numbers_that_name_the_servers_volumes(world: World) -> None:
    """So that its agent knows which is which, however the kernel there calls them."""
    run = world.fail_over()
    (launch,) = run.launches()
    (spec,) = world.site.specs.values()
    assert spec.serials == [volume_serial(spec.server_id, path) for path in launch.args["sources"]]
    assert len(spec.serials) == len(spec.points)


def test_groups_run_in_order_and_the_next_waits_for_the_gates_of_the_first() -> None:
    world = World("db01", "web01")
    world.site.console_text = ""
    plan = parse_plan(
        "{plan: shop, groups: [{servers: [{name: db01, gates: [{console: {text: ready}}]}]},"
        " {servers: [{name: web01}]}]}"
    )
    seen_while_waiting: list[list[str]] = []

    def database_comes_up() -> None:
        seen_while_waiting.append(list(world.events))
        world.site.console_text = "database ready"

    world.clock.on_wait = database_comes_up
    assert world.perform(world.plan(RunKind.FAILOVER, plan)).state is RunState.SUCCEEDED
    assert seen_while_waiting == [["hand to the instance", "boot db01"]]


def test_a_gate_that_never_holds_fails_the_run_with_the_consoles_last_lines(world: World) -> None:
    world.site.console_text = "".join(f"line {n}\n" for n in range(100)) + "Kernel panic - not syncing"
    run = world.fail_over()
    gate = run.steps[-1]
    assert (run.state, gate.state) == (RunState.FAILED, StepState.FAILED)
    assert gate.error is not None
    assert gate.error.startswith("web01: 'login:' on the console did not come within 300 s; last seen: ")
    assert "  | line 99\n  | Kernel panic - not syncing\n" in gate.error
    assert "line 50" not in gate.error
    assert gate.ended_at is not None
    assert gate.started_at is not None
    assert gate.ended_at - gate.started_at >= 300


def test_an_instance_that_dies_fails_its_gate_at_once_and_a_retry_boots_it_again(world: World) -> None:
    world.site.console_text = "booting"

    def die() -> None:
        for instance in world.site.instances():
            world.site.set_state(instance.instance_id, InstanceState.STOPPED, "killed by signal 9")

    world.clock.on_wait = die
    run = world.fail_over()
    assert run.state is RunState.FAILED
    assert "killed by signal 9" in (run.steps[-1].error or "")

    world.site.console_text, world.clock.on_wait = "login:", lambda: None
    world.executor.retry(run.id)
    run = world.executor.wait(run.id)
    assert (run.state, run.steps[-1].error) == (RunState.SUCCEEDED, None)
    assert world.events == ["hand to the instance", "boot web01", "boot again web01"]


def test_only_a_failed_run_is_tried_again(world: World) -> None:
    run = world.fail_over()
    with pytest.raises(Conflict, match="is succeeded"):
        world.executor.retry(run.id)
    with pytest.raises(NotFound):
        world.executor.retry("nonsense")


def test_an_unexpected_exception_fails_the_step_and_not_the_executor(world: World) -> None:
    def bug(what: str) -> None:
        raise ZeroDivisionError("division by zero")

    world.site.before = bug
    run = world.perform(world.plan(RunKind.DRILL))
    assert run.state is RunState.FAILED
    assert (run.steps[0].error or "").startswith("ZeroDivisionError: division by zero (this is a fault of ours")
    world.site.before = lambda what: None
    assert world.perform(world.plan(RunKind.DRILL)).state is RunState.SUCCEEDED


def test_a_store_that_fails_for_a_while_is_asked_again(world: World) -> None:
    run = world.plan(RunKind.FAILOVER)
    failures = iter(range(3))

    def locked() -> None:
        if world.events and next(failures, None) is not None:
            raise OSError("database is locked")

    world.store.before_save = locked
    assert world.perform(run).state is RunState.SUCCEEDED
    assert world.events == ["hand to the instance", "boot web01"]


def test_a_server_that_has_been_failed_over_is_not_failed_over_again(world: World) -> None:
    first = world.fail_over()
    with pytest.raises(Conflict, match=f"web01 has been failed over by {first.id}"):
        world.executor.start(world.plan(RunKind.FAILOVER))
    assert world.perform(world.plan(RunKind.DRILL)).state is RunState.SUCCEEDED


def test_ending_a_failover_that_is_not_home_says_what_would_be_lost_and_wants_force(world: World) -> None:
    run = world.fail_over()
    with pytest.raises(
        Conflict, match=r"all that web01 did after its newest point, p-web01-1 .* would be lost"
    ) as caught:
        world.executor.end(run.id)
    assert caught.value.hint.endswith(f"understudy end {run.id} --force")
    assert world.store.get(run.id).state is RunState.SUCCEEDED

    world.executor.end(run.id, force=True)
    assert world.executor.wait(run.id).state is RunState.ENDED
    assert world.site.instances() == []
    server = world.control.server("acme", "web01")
    assert (server.state, server.owner) == ("protected", "home")
    assert world.fail_over().state is RunState.SUCCEEDED


def test_a_run_is_called_off_while_it_waits(world: World) -> None:
    world.site.console_text = ""
    looked = threading.Event()
    world.site.on_console = looked.set
    executor = Executor(world.store, cast("Site", world.site), world.control, SystemClock())
    run = world.plan(RunKind.DRILL)
    executor.start(run)
    assert looked.wait(PATIENCE_SECONDS)
    executor.end(run.id)
    ended = executor.wait(run.id)
    assert ended.state is RunState.ENDED
    assert (ended.steps[-1].state, ended.steps[-1].error) == (StepState.FAILED, "called off: the run was ended")
    assert world.site.instances() == []


def test_a_removal_that_fails_is_tried_until_it_works(world: World) -> None:
    run = world.perform(world.plan(RunKind.DRILL))
    failures = iter(range(3))
    said: list[str | None] = []

    def refuse(what: str) -> None:
        if next(failures, None) is not None:
            raise SiteError("instance is busy")
        said.append(world.store.get(run.id).steps[-1].waits_for)

    world.site.before = refuse
    world.executor.end(run.id)
    ended = world.executor.wait(run.id)
    assert (ended.state, ended.steps[-1].waits_for) == (RunState.ENDED, None)
    assert "instance is busy" in (said[0] or "")


def test_a_service_that_stops_leaves_the_run_to_be_resumed(world: World) -> None:
    world.site.console_text = ""
    executor = Executor(world.store, cast("Site", world.site), world.control, SystemClock())
    run = world.plan(RunKind.DRILL)
    executor.start(run)
    executor.stop()
    assert world.store.get(run.id).state is RunState.RUNNING

    world.site.console_text = "login:"
    world.start_service()
    assert world.executor.resume() == [run.id]
    assert world.executor.wait(run.id).state is RunState.SUCCEEDED
    assert world.executor.resume() == []


def test_several_runs_go_on_at_once() -> None:
    world = World("a", "b", "c")
    world.executor = Executor(world.store, cast("Site", world.site), world.control, SystemClock())
    world.site.console_text = ""
    plans = [
        parse_plan(f"{{plan: {n}, groups: [{{servers: [{{name: {n}, gates: [{{console: {{text: up}}}}]}}]}}]}}")
        for n in "abc"
    ]
    runs = [world.plan(RunKind.FAILOVER, plan) for plan in plans]
    for run in runs:
        world.executor.start(run)
    world.site.console_text = "up"
    assert [world.executor.wait(run.id).state for run in runs] == [RunState.SUCCEEDED] * 3


def test_waiting_steps_say_what_they_wait_for_and_stop_saying_it(world: World) -> None:
    world.site.console_text = ""
    said: set[str | None] = set()

    def look() -> None:
        said.add(next(iter(world.store.runs())).steps[-1].waits_for)
        world.site.console_text = "login:"

    world.clock = FakeClock()
    world.clock.on_wait = look
    world.start_service()
    run = world.perform(world.plan(RunKind.DRILL))
    assert said == {"'login:' on the console, for up to 300 s"}
    assert run.steps[-1].waits_for is None


def test_an_end_that_comes_while_the_last_step_succeeds_is_not_lost(world: World) -> None:
    plan = parse_plan("{plan: p, groups: [{servers: [{name: web01}]}]}")
    run = world.plan(RunKind.DRILL, plan)
    # called from the run's own thread, in the middle of its last step
    world.site.before = lambda what: world.executor.end(run.id) if what == "launch" else None
    assert world.perform(run).state is RunState.ENDED
    assert world.events == ["boot web01", "remove"]


def test_a_resumed_step_counts_from_its_first_start(world: World) -> None:
    run = world.plan(RunKind.DRILL)
    world.store.add(run)
    begun = run.steps[0]
    begun.state, begun.started_at = StepState.RUNNING, world.clock.now() - 60
    world.store.save_step(run.id, 0, begun)
    world.executor.resume()
    assert world.executor.wait(run.id).steps[0].started_at == world.clock.now() - 60


def test_servers_of_a_group_come_up_side_by_side() -> None:
    world = World("a", "b")
    world.site.console_text = ""
    server = "{{name: {}, gates: [{{console: {{text: up}}}}]}}"
    plan = parse_plan(f"{{plan: two, groups: [{{servers: [{server.format('a')}, {server.format('b')}]}}]}}")

    def both_are_looked_at() -> bool:
        steps = world.store.runs()[0].steps
        return all(step.state is not StepState.PENDING for step in steps if step.action == "gate")

    def come_up_together() -> None:
        eventually(both_are_looked_at)
        world.site.console_text = "up"

    world.clock.on_wait = come_up_together
    assert world.perform(world.plan(RunKind.DRILL, plan)).state is RunState.SUCCEEDED


def test_a_failure_stops_what_comes_after_it_and_nothing_else() -> None:
    world = World("a", "b", "c", "d")
    plan = parse_plan(
        "{plan: p, groups: [{name: one, servers: [{name: a}]}, {name: two, servers: [{name: b}]},"
        " {name: three, after: [], servers: [{name: c}]}, {name: four, servers: [{name: d}]}]}"
    )

    def broken(spec: InstanceSpec) -> Instance:
        if spec.server_name == "a":
            raise SiteError("no capacity for a")
        return launch(spec)

    launch = world.site.launch
    world.site.launch = broken  # type: ignore[method-assign]
    run = world.perform(world.plan(RunKind.DRILL, plan))
    assert run.state is RunState.FAILED
    assert {step.name: step.state.value for step in run.steps} == {
        "launch a": "failed", "launch b": "pending", "launch c": "done", "launch d": "done"
    }  # fmt: skip

    world.site.launch = launch  # type: ignore[method-assign]
    world.executor.retry(run.id)
    assert world.executor.wait(run.id).state is RunState.SUCCEEDED
    assert sorted(world.events) == ["boot a", "boot b", "boot c", "boot d"]


def failing(world: World, times: int) -> None:
    failures = iter(range(times))

    def fail(what: str) -> None:
        if what == "launch" and next(failures, None) is not None:
            raise SiteError("no capacity")

    world.site.before = fail


def test_a_step_is_tried_again_as_often_as_the_plan_says(world: World) -> None:
    plan = parse_plan("{plan: p, on_failure: retry 2, groups: [{servers: [{name: web01}]}]}")
    failing(world, 2)
    run = world.perform(world.plan(RunKind.DRILL, plan))
    assert (run.state, run.steps[0].error) == (RunState.SUCCEEDED, None)
    failing(world, 3)
    run = world.perform(world.plan(RunKind.DRILL, plan))
    assert (run.state, run.steps[0].error) == (RunState.FAILED, "no capacity")


def test_what_may_fail_lets_the_rest_go_on_and_the_run_has_failed_all_the_same() -> None:
    world = World("a", "b")
    plan = parse_plan(
        "{plan: p, groups: [{servers: [{name: a, on_failure: continue, gates: [{console: {text: never}}]}]},"
        " {servers: [{name: b}]}]}"
    )
    run = world.perform(world.plan(RunKind.DRILL, plan))
    assert run.state is RunState.FAILED
    assert world.events == ["boot a", "boot b"]


def test_a_gate_that_is_tried_again_starts_a_guest_that_has_died(world: World) -> None:
    plan = parse_plan(
        "{plan: p, groups: [{servers: [{name: web01, on_failure: retry 1, gates: [{console: {text: up}}]}]}]}"
    )
    world.site.console_text = ""

    def die() -> None:
        (instance,) = world.site.instances()
        if world.events == ["boot web01"]:
            world.site.set_state(instance.instance_id, InstanceState.STOPPED, "killed by signal 9")
        world.site.console_text = "up" if "boot again web01" in world.events else ""

    world.clock.on_wait = die
    assert world.perform(world.plan(RunKind.DRILL, plan)).state is RunState.SUCCEEDED
    assert world.events == ["boot web01", "boot again web01"]


def test_a_wait_counts_from_its_first_start_also_after_a_restart(world: World) -> None:
    plan = parse_plan("{plan: p, groups: [{wait_seconds: 60, servers: [{name: web01}]}]}")
    run = world.plan(RunKind.DRILL, plan)
    begun = world.clock.now()
    run.steps[0].state = StepState.DONE
    run.steps[1].state, run.steps[1].started_at = StepState.RUNNING, begun - 50
    world.store.add(run)
    world.executor.resume()
    assert world.executor.wait(run.id).state is RunState.SUCCEEDED
    assert 10 <= world.clock.now() - begun < 11
