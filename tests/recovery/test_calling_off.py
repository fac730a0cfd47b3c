"""A failback that cannot be called off comes to rest, says why, and has a way on."""

from __future__ import annotations

import pytest

from agent.protocol.errors import Conflict, SiteError
from recovery.ending import not_called_off
from recovery.executor import CALL_OFF_SECONDS
from recovery.runs import Run, RunState, StepState
from recovery.sites.contract import InstanceState
from tests.recovery.test_crashes import killed_threads_are_no_surprise  # noqa: F401  # in this module, too
from tests.recovery.test_failback import interrupted_at
from tests.recovery.world import Killed, World


def no_memory(what: str) -> None:
    if what == "launch":
        raise SiteError("instance i-2 needs 1024 MiB of memory, this machine has 3 left")


def called_off(world: World, run: Run) -> Run:
    world.executor.end(run.id)
    return world.executor.wait(run.id)


def test_an_instance_that_cannot_start_again_is_tried_for_minutes_and_then_somebody_decides(world: World) -> None:
    back = interrupted_at(world, "await_home")
    world.site.before = no_memory
    began = world.clock.now()
    stuck = called_off(world, back)
    assert stuck.state is RunState.FAILED
    assert world.clock.now() - began >= CALL_OFF_SECONDS
    assert "needs 1024 MiB" in (not_called_off(stuck) or "")
    assert any("could not be called off: instance i-2 needs" in told for told in world.control.audits)
    assert world.executor.resume() == [], "it is at rest, also for the next service"

    world.site.before = lambda what: None
    world.executor.retry(back.id)
    ended = world.executor.wait(back.id)
    assert (ended.state, not_called_off(ended)) == (RunState.ENDED, None)
    assert all(step.state is not StepState.FAILED for step in ended.steps if step.action == "settle")
    (instance,) = world.site.instances()
    assert (instance.state, instance.run_id) == (InstanceState.RUNNING, back.failover_run)
    server = world.control.server("acme", "web01")
    assert (server.state, server.owner) == ("failed_over", instance.machine_id)


def test_a_server_that_is_somebody_elses_by_now_is_not_waited_for(world: World) -> None:
    back = interrupted_at(world, "await_home")
    world.control.change("id-web01", epoch=9, owner="somebody else")
    began = world.clock.now()
    stuck = called_off(world, back)
    assert (stuck.state, world.clock.now()) == (RunState.FAILED, began)
    assert "has changed hands since" in (not_called_off(stuck) or "")
    world.executor.end(back.id)  # the same again
    assert world.executor.wait(back.id).state is RunState.FAILED

    before = list(world.events)
    world.executor.retry(back.id, go_on=True)
    assert world.executor.wait(back.id).state is RunState.ENDED
    assert world.events == before, "everything is as it was"
    assert world.control.server("acme", "web01").owner == "somebody else"
    assert any("ended with everything as it is" in told for told in world.control.audits)
    failover = world.store.get(back.failover_run or "")
    world.executor.end(failover.id, force=True)
    assert world.executor.wait(failover.id).state is RunState.ENDED


def test_while_it_could_not_be_called_off_it_does_not_go_home_either(world: World) -> None:
    back = interrupted_at(world, "await_home")
    world.site.before = no_memory
    called_off(world, back)
    world.site.before = lambda what: None
    world.people_at_home_do_their_part()
    world.executor.retry(back.id)
    assert world.executor.wait(back.id).state is RunState.ENDED
    assert world.control.server("acme", "web01").state == "failed_over"


def test_a_server_that_arrived_at_home_meanwhile_is_not_called_back_without_force(world: World) -> None:
    back = interrupted_at(world, "await_home")
    world.site.before = no_memory
    called_off(world, back)
    world.control.arrived.add("id-web01")
    with pytest.raises(Conflict, match="has booted at home") as refused:
        world.executor.retry(back.id)
    assert f"understudy retry {back.id} --go-on" in refused.value.hint
    stuck = world.store.get(back.id)
    assert (stuck.state, not_called_off(stuck) is None) == (RunState.FAILED, False)


@pytest.mark.parametrize("save", range(1, 5))
def test_a_service_that_is_killed_while_it_gives_up_or_tries_again_loses_nothing_of_it(save: int, world: World) -> None:
    back = interrupted_at(world, "await_home")
    world.site.before = no_memory
    called_off(world, back)
    saves = iter(range(1, 100))

    def kill() -> None:
        if next(saves) == save:
            raise Killed

    world.store.after_save = kill
    world.site.before = lambda what: None
    try:
        world.executor.retry(back.id)
        world.executor.wait(back.id)
    except Killed:
        pass
    world.store.after_save = lambda: None
    world.start_service()
    resumed = world.executor.resume()
    run = world.executor.wait(back.id)
    if not resumed and run.state is RunState.FAILED:
        world.executor.retry(back.id)
        run = world.executor.wait(back.id)
    assert run.state is RunState.ENDED
    assert [instance.state for instance in world.site.instances()] == [InstanceState.RUNNING]
