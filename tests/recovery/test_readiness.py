"""When boot repair is passed over, and that the run says why."""

from __future__ import annotations

import dataclasses

import pytest

from recovery.control import Server
from recovery.describe import describe
from recovery.planner import Order
from recovery.readiness import Booted, last_boots, why_ready
from recovery.runs import RunKind, RunState
from tests.recovery.memory_control import make_server
from tests.recovery.world import Repairs, World

READY = dataclasses.replace(make_server(), boots_on=("virtio",), boot_digest="d1")
UNKNOWN = dataclasses.replace(make_server(), boot_digest="d1")
BOOTED = Booted(run="drill-1", point="p-1", held=True, as_it_is=True, boot_digest="d1")


@pytest.mark.parametrize(
    ("server", "last", "why"),
    [
        (READY, None, "boots on virtio as it is"),
        (READY, dataclasses.replace(BOOTED, as_it_is=False), "boots on virtio as it is"),
        (UNKNOWN, BOOTED, "drill-1 booted this point as it is"),
        (UNKNOWN, dataclasses.replace(BOOTED, point="p-0"), "nothing that a boot reads has changed since"),
        (UNKNOWN, None, None),
        (UNKNOWN, dataclasses.replace(BOOTED, as_it_is=False), None),
        (UNKNOWN, dataclasses.replace(BOOTED, point="p-0", boot_digest="d0"), None),
        (dataclasses.replace(UNKNOWN, boot_digest=None), dataclasses.replace(BOOTED, point="p-0"), None),
        (UNKNOWN, dataclasses.replace(BOOTED, bus="ahci"), None),
        # whoever says that it is ready: it did not come up
        (READY, dataclasses.replace(BOOTED, held=False), None),
    ],
)
def test_repair_is_passed_over_where_something_has_shown_that_it_is_not_needed(
    server: Server, last: Booted | None, why: str | None
) -> None:
    found = why_ready(server, "p-1", "virtio", last)
    assert (found is None) if why is None else (found is not None and why in found)


def repairing_world(changes: int) -> World:
    world = World()
    world.repairer = Repairs(world.events, changes)
    world.start_service()
    return world


def again(world: World) -> str:
    """A second drill, as the service plans it: what it did about boot repair."""
    order = Order(last_boots=last_boots(world.store.runs("acme")))
    run = world.perform(world.plan(RunKind.DRILL, order=order))
    (step,) = [step for step in run.steps if step.action == "repair"]
    assert run.state is RunState.SUCCEEDED
    return describe(step) + " / " + str(step.result)


def test_a_point_that_was_booted_without_a_change_is_not_looked_at_again_and_the_run_says_so() -> None:
    world = repairing_world(changes=0)
    first = world.perform(world.plan(RunKind.DRILL))
    said = again(world)
    assert f"no boot repair: {first.id} booted this point as it is" in said
    assert "passed over" in said
    assert world.events.count("repair web01") == 1
    assert "passed over" in again(world), "a boot whose repair was passed over shows the same"


def test_one_that_had_to_be_repaired_is_repaired_each_time() -> None:
    world = repairing_world(changes=2)
    world.perform(world.plan(RunKind.DRILL))
    assert "changes" in again(world)
    assert world.events.count("repair web01") == 2
