from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from agent.protocol.errors import Conflict, RecoveryError
from agent.protocol.messages import Point
from recovery.actions import RepairJob
from recovery.homeward import plan_failback
from recovery.report import run_to_json
from recovery.runs import Run, RunState, StepState
from recovery.sites.contract import InstanceState
from tests.recovery.memory_control import make_point
from tests.recovery.world import NOW, Repairs, World

ALL_THE_WAY_HOME = [
    "hand to the instance",
    "boot web01",
    "request a point",
    "ask to shut down",
    "capture",
    "hand home",
    "settle",
    "remove",
]


def test_a_server_goes_home_and_its_failover_has_ended(world: World) -> None:
    failover = world.fail_over()
    world.people_at_home_do_their_part()
    back = world.perform(world.plan_failback(failover))
    assert back.state is RunState.SUCCEEDED
    assert world.events == ALL_THE_WAY_HOME
    assert world.store.get(failover.id).state is RunState.ENDED
    server = world.control.server("acme", "web01")
    assert (server.state, server.epoch, server.owner) == ("protected", 3, None)
    pulls = [step.result for step in back.steps if step.action == "await_pull"]
    assert pulls == [
        {"point": "p-agent-1", "volumes": 1, "received_bytes": 1000},
        {"point": "p-final-1", "volumes": 1, "received_bytes": 1000},
    ]
    told = run_to_json(back, {}, NOW)
    assert told["received_bytes"] == 2000
    assert told["rto_seconds"] is not None
    assert list(dict.fromkeys(step["stage"] for step in told["steps"])) == [
        "prepare",
        "sync while running",
        "cut over",
        "boot at home",
        "resume forward replication",
        "retire the instance",
    ]

    world.executor.end(back.id)
    assert world.executor.wait(back.id).state is RunState.ENDED
    assert world.events == ALL_THE_WAY_HOME
    assert world.fail_over().state is RunState.SUCCEEDED


def test_it_says_the_exact_commands_for_the_volumes_that_are_still_missing(world: World) -> None:
    failover = world.fail_over()
    world.control.agent_answers = False
    point: Point = make_point("p-two", volumes=2)
    world.control.points_by_server["id-web01"].insert(0, point)
    back = world.plan_failback(failover)
    said: list[str | None] = []

    def one_volume_after_the_other() -> None:
        run = world.store.get(back.id)
        said.append(run.steps[1].waits_for)
        if run.steps[1].state is StepState.RUNNING:
            done = world.control.pulled.setdefault("p-two", set())
            done.add(len(done))
        elif run.steps[1].state is StepState.DONE:
            world.people_at_home_do_their_part()

    world.clock.on_wait = one_volume_after_the_other
    assert world.perform(back).state is RunState.SUCCEEDED
    told = list(dict.fromkeys(text for text in said if text))
    assert told == [
        "on the repaired machine (the rescue image does it of its own accord), run:\n"
        "understudy-agent pull p-two --volume 0 --onto DISK --yes\n"
        "understudy-agent pull p-two --volume 1 --onto DISK --yes",
        "on the repaired machine (the rescue image does it of its own accord), run:\n"
        "understudy-agent pull p-two --volume 1 --onto DISK --yes",
    ]


def test_without_an_answer_of_the_agent_it_goes_on_with_the_newest_point_and_says_so(world: World) -> None:
    failover = world.fail_over()
    world.control.agent_answers = False
    world.people_at_home_do_their_part()
    world.control.change("id-web01", last_seen_seconds=None)
    back = world.perform(world.plan_failback(failover))
    assert back.state is RunState.SUCCEEDED
    assert back.steps[0].result == {
        "point": "p-web01-1",
        "note": "no new point: its agent has not answered for 60 s; going on with the newest, p-web01-1",
    }


def test_an_agent_that_is_there_but_slow_gets_more_time(world: World) -> None:
    failover = world.fail_over()
    world.control.agent_answers = False
    world.people_at_home_do_their_part()
    back = world.perform(world.plan_failback(failover))
    assert "took longer than 900 s" in back.steps[0].result["note"]


def test_a_guest_that_does_not_hear_is_asked_again(world: World) -> None:
    failover = world.fail_over()
    world.site.stubborn = 3
    world.people_at_home_do_their_part()
    assert world.perform(world.plan_failback(failover)).state is RunState.SUCCEEDED
    assert world.events.count("ask to shut down") == 4


def test_a_guest_that_never_shuts_down_fails_the_run_loses_nothing_and_can_be_tried_again(world: World) -> None:
    failover = world.fail_over()
    world.site.stubborn = 1_000
    world.people_at_home_do_their_part()
    back = world.perform(world.plan_failback(failover))
    assert back.state is RunState.FAILED
    assert "did not shut down within 180 s (nothing is lost and it still runs" in (back.steps[2].error or "")
    assert [instance.state for instance in world.site.instances()] == [InstanceState.RUNNING]

    world.site.stubborn = 0
    world.executor.retry(back.id)
    assert world.executor.wait(back.id).state is RunState.SUCCEEDED


def test_an_instance_that_is_gone_cannot_be_brought_home(world: World) -> None:
    failover = world.fail_over()
    world.people_at_home_do_their_part()
    world.site.instances_by_id.clear()
    back = world.perform(world.plan_failback(failover))
    assert (back.state, "is gone" in (back.steps[2].error or "")) == (RunState.FAILED, True)


def test_a_failover_is_brought_home_once_at_a_time_and_not_ended_meanwhile(world: World) -> None:
    failover = world.fail_over()
    world.site.stubborn = 1_000
    world.people_at_home_do_their_part()
    back = world.perform(world.plan_failback(failover))
    with pytest.raises(Conflict, match=f"web01 is being brought home by {back.id}"):
        world.executor.start(world.plan_failback(failover))
    with pytest.raises(Conflict, match=f"is being brought home by {back.id}"):
        world.executor.end(failover.id, force=True)


def interrupted_at(world: World, action: str, *, hold: bool = False) -> Run:
    """A failback whose service was stopped while it waited in `action`."""
    failover = world.fail_over()
    server = world.control.server("acme", "web01")
    back = plan_failback(failover, server, world.ids, world.clock.now(), hold=hold)
    world.people_at_home_do_their_part()
    at_home = world.clock.on_wait

    def until_then() -> None:
        run = world.store.get(back.id)
        if any(step.action == action and step.state is StepState.RUNNING for step in run.steps):
            world.executor._stopping.set()
            for active in world.executor._active.values():
                active.interrupt.set()
        else:
            at_home()

    world.clock.on_wait = until_then
    run = world.perform(back)
    assert run.state is RunState.RUNNING
    world.clock.on_wait = lambda: None
    world.start_service()
    return run


def test_a_failback_called_off_before_the_handover_leaves_the_instance_running(world: World) -> None:
    world.site.stubborn = 1
    back = interrupted_at(world, "shut_down")
    world.site.set_state(back.steps[2].args["instance_id"], InstanceState.STOPPED)
    world.executor.end(back.id)
    assert world.executor.wait(back.id).state is RunState.ENDED
    assert [instance.state for instance in world.site.instances()] == [InstanceState.RUNNING]
    server = world.control.server("acme", "web01")
    assert (server.state, server.epoch) == ("failed_over", 2)
    world.people_at_home_do_their_part()
    again = world.plan_failback(world.store.get(back.failover_run or ""))
    assert world.perform(again).state is RunState.SUCCEEDED


def test_a_failback_called_off_after_the_handover_gives_the_identity_back_to_the_instance(world: World) -> None:
    back = interrupted_at(world, "await_home")
    world.executor.end(back.id)
    assert world.executor.wait(back.id).state is RunState.ENDED
    (instance,) = world.site.instances()
    server = world.control.server("acme", "web01")
    assert instance.state is InstanceState.RUNNING
    assert (server.state, server.epoch, server.owner) == ("failed_over", 4, instance.machine_id)
    assert instance.run_id == back.failover_run


def test_once_the_machine_at_home_has_booted_a_failback_is_called_off_only_by_force(world: World) -> None:
    back = interrupted_at(world, "await_home")
    world.control.arrived.add("id-web01")
    with pytest.raises(Conflict, match="web01 has booted at home"):
        world.executor.end(back.id)
    world.control.add_point("id-web01", "p-home", epoch=3)
    world.executor.resume()
    assert world.executor.wait(back.id).state is RunState.SUCCEEDED


def test_calling_a_failback_off_never_boots_the_old_point_in_place_of_an_instance_that_is_gone(world: World) -> None:
    world.site.stubborn = 1
    back = interrupted_at(world, "shut_down")
    world.site.instances_by_id.clear()
    world.executor.end(back.id)
    assert world.executor.wait(back.id).state is RunState.ENDED
    assert world.site.instances() == []


def repaired_failover(world: World) -> tuple[Run, Repairs]:
    repairs = Repairs(world.events)
    world.repairer = repairs
    world.start_service()
    return world.fail_over(), repairs


def test_what_boot_repair_changed_is_taken_back_between_the_shutdown_and_the_last_point(world: World) -> None:
    failover, _ = repaired_failover(world)
    world.people_at_home_do_their_part()
    back = world.perform(world.plan_failback(failover))
    assert back.state is RunState.SUCCEEDED
    cut = world.events.index("ask to shut down")
    assert world.events[cut : cut + 3] == ["ask to shut down", "undo the repair of web01", "capture"]
    (step,) = [step for step in back.steps if step.action == "undo_repair"]
    assert (step.args["stage"], step.result) == ("undo boot repair", {"note": "undone"})


def test_a_failback_called_off_after_that_repairs_again_before_the_instance_starts(world: World) -> None:
    repairs = Repairs(world.events)
    world.repairer = repairs
    world.start_service()
    back = interrupted_at(world, "await_home")
    assert repairs.repaired == set()
    world.executor.end(back.id)
    assert world.executor.wait(back.id).state is RunState.ENDED
    assert world.events[-2:] == ["repair web01", "boot again web01"]


def test_an_instance_that_cannot_be_repaired_again_is_started_as_it_is(world: World) -> None:
    repairs = Repairs(world.events)
    world.repairer = repairs
    world.start_service()
    back = interrupted_at(world, "await_home")
    repairs.failure = RecoveryError("it cannot be read")
    world.executor.end(back.id)
    assert world.executor.wait(back.id).state is RunState.ENDED
    assert [instance.state for instance in world.site.instances()] == [InstanceState.RUNNING]


def test_a_service_that_stops_while_a_repair_is_undone_undoes_it_later_and_does_not_go_home_without(
    world: World,
) -> None:
    begun = threading.Event()

    class Slow(Repairs):
        def undo(self, job: RepairJob) -> dict[str, Any]:
            begun.set()
            while not job.stopped():
                time.sleep(0.001)
            raise RecoveryError("the boot repair was stopped")

    failover, repairs = repaired_failover(world)
    world.people_at_home_do_their_part()
    world.repairer = Slow(world.events)
    world.start_service().start(back := world.plan_failback(failover))
    assert begun.wait(60)
    world.executor.stop()
    (step,) = [step for step in world.store.get(back.id).steps if step.state is StepState.RUNNING]
    assert (step.action, step.result) == ("undo_repair", {})
    world.repairer = repairs
    world.start_service().resume()
    assert world.executor.wait(back.id).state is RunState.SUCCEEDED
    assert "undo the repair of web01" in world.events


def test_an_instance_is_kept_for_its_grace_time(world: World) -> None:
    failover = world.fail_over()
    world.people_at_home_do_their_part()
    server = world.control.server("acme", "web01")
    back = plan_failback(world.store.get(failover.id), server, world.ids, world.clock.now(), grace_seconds=3600)
    assert world.perform(back).state is RunState.SUCCEEDED
    grace, retire = world.store.get(back.id).steps[-2:]
    assert (retire.started_at or 0) - (grace.started_at or 0) >= 3600


def test_a_grace_time_is_cut_short_only_by_force(world: World) -> None:
    failover = world.fail_over()
    world.people_at_home_do_their_part()
    at_home = world.clock.on_wait
    server = world.control.server("acme", "web01")
    back = plan_failback(world.store.get(failover.id), server, world.ids, world.clock.now(), grace_seconds=3600)
    executor = world.executor

    def cut_short() -> None:
        at_home()
        if world.store.get(back.id).steps[-2].state is StepState.RUNNING:
            world.clock.on_wait = lambda: None
            with pytest.raises(Conflict, match="removes its instance before the grace time is over"):
                executor.end(back.id)
            assert len(world.site.instances()) == 1
            executor.end(back.id, force=True)

    world.clock.on_wait = cut_short
    assert world.perform(back).state is RunState.ENDED
    assert world.site.instances() == []
    assert world.store.get(failover.id).state is RunState.ENDED
    assert world.control.server("acme", "web01").state == "protected"


def holding(world: World) -> Run:
    """A failback that holds, copied; the service has been stopped and started again meanwhile."""
    run = interrupted_at(world, "await_cut_over", hold=True)
    assert "ask to shut down" not in world.events
    world.people_at_home_do_their_part()
    return run


def test_a_failback_that_holds_shuts_nothing_down_before_its_cut_over_is_confirmed(world: World) -> None:
    run = holding(world)
    (step,) = [step for step in run.steps if step.state is StepState.RUNNING]
    assert step.name == "hold web01 until its cut-over is confirmed"
    assert step.waits_for == f"web01 is copied and goes on working; to cut over: understudy commit {run.id}"
    executor = world.executor
    people = world.clock.on_wait
    asked = 0

    def confirm_later() -> None:
        nonlocal asked
        people()
        asked += 1
        if asked == 5:
            assert "ask to shut down" not in world.events, "the service goes on holding after a start"
            executor.commit(run.id)

    world.clock.on_wait = confirm_later
    executor.resume()
    run = executor.wait(run.id)
    assert run.state is RunState.SUCCEEDED
    assert world.events.count("request a point") == 2, "what changed during the hold is copied before the outage"
    assert world.store.get(run.failover_run or "").state is RunState.ENDED


def test_a_failback_that_holds_can_be_called_off_and_another_kind_has_nothing_to_confirm(world: World) -> None:
    run = holding(world)
    executor = world.executor
    executor.end(run.id)
    assert executor.wait(run.id).state is RunState.ENDED
    assert [instance.state for instance in world.site.instances()] == [InstanceState.RUNNING]
    assert world.control.server("acme", "web01").state == "failed_over"
    with pytest.raises(Conflict, match="was called off"):
        executor.commit(run.id)
    again = world.perform(world.plan_failback(world.store.get(run.failover_run or "")))
    with pytest.raises(Conflict, match="waits for nobody's word"):
        executor.commit(again.id)
