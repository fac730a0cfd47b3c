from __future__ import annotations

import json

from recovery.report import run_to_json
from recovery.runs import RunKind
from tests.recovery.world import NOW, World


def test_a_run_is_told_with_its_steps_its_rto_and_its_instances(world: World) -> None:
    world.site.console_text = ""

    def come_up() -> None:
        world.site.console_text = "login:"

    world.clock.on_wait = come_up
    run = world.plan(RunKind.DRILL)
    before = run_to_json(run, {}, NOW)
    assert (before["state"], before["rto_seconds"], before["instances"][0]["state"]) == ("running", None, "pending")

    run = world.perform(run)
    document = run_to_json(run, world.site.instances_by_id, NOW)
    assert json.loads(json.dumps(document)) == document
    assert (document["kind"], document["plan"], document["state"]) == ("drill", "web01", "succeeded")
    assert document["rto_seconds"] == 0.3
    assert [(step["state"], step["seconds"]) for step in document["steps"]] == [("done", 0.0), ("done", 0.3)]
    assert document["instances"] == [{"id": "i-2", "server": "web01", "state": "running", "addresses": {}}]


def test_what_the_site_does_not_know_any_more_is_gone(world: World) -> None:
    run = world.perform(world.plan(RunKind.DRILL))
    assert run_to_json(run, {}, NOW)["instances"][0]["state"] == "gone"


def test_a_run_that_failed_has_no_rto(world: World) -> None:
    world.site.console_text = ""
    run = world.perform(world.plan(RunKind.DRILL))
    assert run_to_json(run, world.site.instances_by_id, NOW)["rto_seconds"] is None
