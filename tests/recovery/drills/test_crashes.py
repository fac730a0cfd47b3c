"""A service that is killed between a drill's first step and its last removal leaves proof, and nothing else."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from recovery.drills.reaper import Reaper
from recovery.runs import RunKind, RunState, StepState
from tests.recovery.drills.test_looking_back import MemoryWitness
from tests.recovery.test_crashes import Killer, at_rest, start
from tests.recovery.world import Killed, World


@pytest.fixture(autouse=True, scope="module")
def killed_threads_are_no_surprise() -> Iterator[None]:
    told = threading.excepthook
    threading.excepthook = lambda args: None if args.exc_type is Killed else told(args)
    yield
    threading.excepthook = told


def drill_until_its_time_is_over(world: World) -> None:
    """Begun by hand, ended by the reaper of whatever service is there; each service begins as `serve` does."""
    witness = MemoryWitness()
    world.witness = witness
    world.start_service()
    run = world.plan(RunKind.DRILL)
    run.scheduled = True
    run = start(world, run)
    assert run.state is RunState.SUCCEEDED
    assert next(step for step in run.steps if step.action == "evidence").state is StepState.DONE
    assert witness.pictures
    while world.store.get(run.id).state is not RunState.ENDED or world.site.instances():
        try:
            Reaper(
                world.store,
                world.site,  # type: ignore[arg-type]
                world.executor.end,
                lambda tenant, words: None,
                world.clock.now,
            ).sweep()
        except Killed:
            world.start_service()
            world.executor.resume()
        at_rest(world, run.id)
    assert world.events == ["boot web01", "remove"]


def test_a_kill_at_any_moment_of_a_drill_and_of_its_end_leaves_nothing() -> None:
    world = World()
    killer = Killer(world)
    drill_until_its_time_is_over(world)
    moments = killer.count
    assert moments > 20
    for moment in range(1, moments + 1):
        world = World()
        killer = Killer(world, moment)
        drill_until_its_time_is_over(world)
        assert killer.count >= moment


def test_two_kills_one_of_them_while_the_other_is_recovered_from_leave_nothing() -> None:
    for moment in range(1, 40, 3):
        for later in range(1, 8):
            world = World()
            Killer(world, moment, moment + later)
            drill_until_its_time_is_over(world)
