"""The service is killed at every place where it could be, and each run ends as if nothing had happened."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recovery.executor import Executor
from recovery.planner import Order
from recovery.plans import parse_plan
from recovery.runs import Run, RunKind, RunState, StepState
from recovery.scripts import Scripts
from recovery.sites.contract import InstanceState
from tests.recovery.memory_control import make_point, make_server
from tests.recovery.world import Killed, Repairs, World

Journey = Callable[[World], None]


@pytest.fixture(autouse=True, scope="module")
def killed_threads_are_no_surprise() -> Iterator[None]:
    told = threading.excepthook

    def tell(args: threading.ExceptHookArgs) -> None:
        if args.exc_type is not Killed:
            told(args)

    threading.excepthook = tell
    yield
    threading.excepthook = told


class Killer:
    """Kills at chosen moments: each save (before and after) and each call to site and control counts as one.

    A kill is for the whole process: threads of a service that was killed get no further, whatever they do."""

    def __init__(self, world: World, *moments: int) -> None:
        self.world = world
        self.moments = set(moments)
        self.count = 0
        self.dead: list[Executor] = []
        self.lock = threading.Lock()
        world.store.before_save = world.store.after_save = self.tick
        world.site.before = world.control.before = lambda what: self.tick()

    def tick(self) -> None:
        with self.lock:
            self.count += 1
            if self.count in self.moments:
                self.dead.append(self.world.executor)
            if self.world.executor in self.dead:
                raise Killed


def at_rest(world: World, run_id: str) -> Run:
    """Go on with new services until the run is at rest."""
    while True:
        run = world.executor.wait(run_id)
        if run.state not in (RunState.RUNNING, RunState.ENDING):
            return run
        world.start_service()
        world.executor.resume()


def start(world: World, run: Run) -> Run:
    while run.id not in world.store.rows:  # killed before it was stored, the operator saw it fail and tries again
        try:
            world.executor.start(run)
        except Killed:
            world.start_service()
    return at_rest(world, run.id)


def end(world: World, run: Run, *, force: bool = False) -> None:
    while world.store.get(run.id).state is not RunState.ENDED:
        try:
            world.executor.end(run.id, force=force)
        except Killed:
            world.start_service()
        at_rest(world, run.id)


def drill_and_end(world: World) -> None:
    run = start(world, world.plan(RunKind.DRILL))
    assert run.state is RunState.SUCCEEDED
    end(world, run)
    assert world.site.instances() == []
    assert world.control.server("acme", "web01").epoch == 1
    assert world.events == ["boot web01", "remove"]


def there_and_back(world: World) -> None:
    world.people_at_home_do_their_part()
    failover = start(world, world.plan(RunKind.FAILOVER))
    assert failover.state is RunState.SUCCEEDED
    assert [instance.state for instance in world.site.instances()] == [InstanceState.RUNNING]
    back = start(world, world.plan_failback(failover))
    assert back.state is RunState.SUCCEEDED
    assert all(step.state is StepState.DONE for step in back.steps)
    assert world.store.get(failover.id).state is RunState.ENDED
    assert world.site.instances() == []
    server = world.control.server("acme", "web01")
    assert (server.state, server.epoch, server.owner) == ("protected", 3, None)
    once = [event for event in world.events if event != "ask to shut down"]  # asking again is how it is done
    assert once == ["hand to the instance", "boot web01", "request a point", "capture", "hand home", "settle", "remove"]


def failover_and_give_up(world: World) -> None:
    failover = start(world, world.plan(RunKind.FAILOVER))
    end(world, failover, force=True)
    assert world.site.instances() == []
    server = world.control.server("acme", "web01")
    assert (server.state, server.epoch, server.owner) == ("protected", 3, "home")
    assert world.events == ["hand to the instance", "boot web01", "remove", "give back"]


def stopped_taken_over_and_undone(world: World) -> None:
    order = Order(alive=frozenset({"web01"}))
    failover = start(world, world.plan(RunKind.FAILOVER, order=order))
    assert failover.state is RunState.SUCCEEDED
    end(world, failover, force=True)
    assert world.site.instances() == []
    server = world.control.server("acme", "web01")
    assert (server.state, server.epoch, server.owner) == ("protected", 3, "home")
    assert world.events == ["fence", "request a point", "hand to the instance", "boot web01", "remove", "give back"]


def repaired_there_and_back(world: World) -> None:
    """Boot repair may be begun again; what counts is how the volumes are in the end."""
    world.people_at_home_do_their_part()
    repairs = world.repairer = Repairs(world.events)
    repairs.before = world.site.before
    world.start_service()
    failover = start(world, world.plan(RunKind.FAILOVER))
    assert failover.state is RunState.SUCCEEDED
    back = start(world, world.plan_failback(failover))
    assert back.state is RunState.SUCCEEDED
    assert repairs.repaired == set()
    assert world.events.index("undo the repair of web01") < world.events.index("capture")


WHOLE = """
plan: whole
pre: [{run: [note, pre], in_drills: true}]
groups:
- wait_seconds: 30
  servers: [{name: web01}, {name: db01}]
- servers: [{name: mq01, on_failure: "retry 1, then continue", gates: [{console: {text: "login:"}}]}]
  post: [{run: [note, post], in_drills: true}]
"""


def every_kind_of_step(world: World) -> None:
    """Two servers side by side, boot repair, a wait, scripts, a gate; what may be done twice may be, and no more."""
    for name in ("db01", "mq01"):
        world.control.servers[name] = make_server(name)
        world.control.points_by_server[f"id-{name}"] = [make_point(f"p-{name}", name)]
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "note"
        script.write_text(f"#!/bin/sh\necho $1 >> {folder}/noted\n")
        script.chmod(0o755)
        world.repairer, world.scripts = Repairs(world.events, 1), Scripts(Path(folder))
        world.start_service()
        run = start(world, world.plan(RunKind.DRILL, parse_plan(WHOLE)))
        noted = (Path(folder) / "noted").read_text().split()
    assert run.state is RunState.SUCCEEDED, run
    assert all(step.state is StepState.DONE for step in run.steps)
    assert [noted[0], noted[-1], *sorted(set(noted))] == ["pre", "post", "post", "pre"]
    repaired = {event for event in world.events if event.startswith("repair")}
    assert repaired == {"repair web01", "repair db01", "repair mq01"}
    boots = [event for event in world.events if event.startswith("boot")]
    assert sorted(boots) == ["boot db01", "boot mq01", "boot web01"]
    assert boots[-1] == "boot mq01", "the second group came after the first"
    end(world, run)
    assert world.site.instances() == []


JOURNEYS: list[Journey] = [
    drill_and_end,
    there_and_back,
    failover_and_give_up,
    stopped_taken_over_and_undone,
    repaired_there_and_back,
]


def moments_of(journey: Journey) -> int:
    world = World()
    killer = Killer(world)
    journey(world)
    return killer.count


@pytest.mark.parametrize("journey", JOURNEYS)
def test_a_kill_at_any_single_moment_changes_nothing_about_the_end(journey: Journey) -> None:
    for moment in range(1, moments_of(journey) + 1):
        world = World()
        killer = Killer(world, moment)
        journey(world)
        assert killer.count >= moment


def test_a_kill_at_any_boundary_of_every_kind_of_step_changes_nothing_about_the_end() -> None:
    for moment in range(1, moments_of(every_kind_of_step) + 1):
        world = World()
        Killer(world, moment)
        every_kind_of_step(world)


@settings(max_examples=150)
@given(st.sampled_from(JOURNEYS), st.sets(st.integers(1, 120), max_size=12))
def test_any_number_of_kills_changes_nothing_about_the_end(journey: Journey, moments: set[int]) -> None:
    world = World()
    Killer(world, *moments)
    journey(world)
