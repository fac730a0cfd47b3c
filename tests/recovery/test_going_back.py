"""A way home is called off at every moment that it has: the server goes on as the instance, unless it is at home."""

from __future__ import annotations

import threading

import pytest

from agent.protocol.errors import Conflict
from recovery.homeward import plan_failback
from recovery.runs import Run, RunKind, RunState, StepState
from recovery.sites.contract import InstanceState
from tests.recovery.world import Repairs, World


class CallOff:
    """Ends the run at one moment: each save and each call to site and control is one. By a thread of its own, since
    the one that comes by may hold what ending needs."""

    def __init__(self, world: World, run: Run, moment: int = 0) -> None:
        self.world, self.run_id, self.moment = world, run.id, moment
        self.count = 0
        self.refused: Conflict | None = None
        self.thread = threading.Thread(target=self._end)
        world.store.before_save = world.store.after_save = self.tick
        world.site.before = world.control.before = lambda what: self.tick()

    def tick(self) -> None:
        self.count += 1
        if self.count == self.moment:
            self.thread.start()
            self.thread.join(0.02)

    def _end(self) -> None:
        try:
            self.world.executor.end(self.run_id)
        except Conflict as error:
            self.refused = error

    def done(self) -> Run:
        """The run at rest, with nobody who interferes any more."""
        if self.thread.ident is not None:
            self.thread.join()
        while (run := self.world.executor.wait(self.run_id)).state in (RunState.RUNNING, RunState.ENDING):
            pass
        self.moment = 0
        return run


def on_its_way(world: World) -> Run:
    """A failback with each kind of step that there is, ready to begin; whoever has to do something at home does it."""
    world.repairer = Repairs(world.events)
    world.start_service()
    failover = world.perform(world.plan(RunKind.FAILOVER))
    server = world.control.server("acme", "web01")
    run = plan_failback(failover, server, world.ids, world.clock.now(), grace_seconds=5.0, hold=True)
    world.people_at_home_do_their_part()
    people = world.clock.on_wait

    def confirm() -> None:
        people()
        if run.id in world.store.rows and world.store.get(run.id).state is RunState.RUNNING:
            world.executor.commit(run.id)

    world.clock.on_wait = confirm
    return run


def moments() -> int:
    world = World()
    run = on_its_way(world)
    counting = CallOff(world, run)
    world.executor.start(run)
    assert counting.done().state is RunState.SUCCEEDED
    return counting.count


@pytest.mark.parametrize("moment", range(1, moments() + 1))
def test_a_way_home_is_gone_back_on_at_every_moment_until_the_server_is_home(moment: int) -> None:
    world = World()
    run = on_its_way(world)
    call_off = CallOff(world, run, moment)
    world.executor.start(run)
    run = call_off.done()
    server = world.control.server("acme", "web01")
    settled = next(step for step in run.steps if step.action == "settle").state is StepState.DONE
    if settled:
        assert run.state in (RunState.SUCCEEDED, RunState.ENDED)
        assert (server.state, world.site.instances()) == ("protected", [])
        return
    assert (run.state, call_off.refused) == (RunState.ENDED, None), "once it is at home, it can only be finished"
    (instance,) = world.site.instances()
    assert (instance.state, instance.run_id) == (InstanceState.RUNNING, run.failover_run)
    assert (server.state, server.owner) == ("failed_over", instance.machine_id)
    assert isinstance(world.repairer, Repairs)
    assert instance.instance_id in world.repairer.repaired, "it runs with the drivers that it needs here"
    again = world.plan_failback(world.store.get(run.failover_run or ""))
    assert world.perform(again).state is RunState.SUCCEEDED
    assert world.control.server("acme", "web01").state == "protected"
