"""Steps around a boot: scripts, boot repair, devices, and what the guest's agent is asked."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from agent.protocol.errors import RecoveryError
from recovery.actions import RepairJob
from recovery.control import CommandState
from recovery.describe import describe
from recovery.plans import parse_plan
from recovery.readiness import last_boots
from recovery.report import run_to_json
from recovery.runs import RunKind, RunState, StepState
from recovery.scripts import Scripts
from recovery.sites.contract import Devices, InstanceState
from tests.recovery.world import NOW, Repairs, World


def test_a_script_is_a_step_that_knows_the_run(world: World, tmp_path: Path) -> None:
    (tmp_path / "tell").write_text("#!/bin/sh\necho $UNDERSTUDY_KIND $UNDERSTUDY_RUN; cat\n")
    (tmp_path / "tell").chmod(0o755)
    world.scripts = Scripts(tmp_path)
    world.start_service()
    plan = parse_plan("{plan: p, groups: [{servers: [{name: web01}]}], post: [{run: [tell]}]}")
    run = world.perform(world.plan(RunKind.FAILOVER, plan))
    assert run.state is RunState.SUCCEEDED
    said, facts = run.steps[-1].result["output"].splitlines()
    assert said == f"failover {run.id}"
    (server,) = json.loads(facts)["servers"]
    assert (server["server"], server["state"], server["point"]) == ("web01", "running", "p-web01-1")


def test_a_repair_works_on_the_instances_own_volumes_before_its_first_start(world: World) -> None:
    jobs: list[RepairJob] = []

    class Looks(Repairs):
        def __call__(self, job: RepairJob) -> dict[str, Any]:
            jobs.append(job)
            assert world.site.watch(job.instance_id).state is InstanceState.PENDING
            return {"changes": 2, "note": "2 files changed"}

    world.repairer = Looks(world.events)
    world.start_service()
    run = world.perform(world.plan(RunKind.DRILL))
    assert run.state is RunState.SUCCEEDED
    assert world.events == ["copy web01", "boot web01"]
    (job,) = jobs
    assert (job.server, job.volumes) == ("web01", (f"{job.instance_id}/0",))
    assert run.steps[0].result == {"changes": 2, "note": "2 files changed"}


@pytest.mark.parametrize(
    ("planned", "found", "expected"),
    [
        ("", {"devices": "ahci"}, Devices.AHCI),
        ("", {"devices": "virtio"}, Devices.VIRTIO),
        ("", {}, Devices.VIRTIO),
        (", devices: ahci", {}, Devices.AHCI),
        (", devices: virtio", {"devices": "ahci"}, Devices.VIRTIO),
        (", devices: ahci, repair: false", {}, Devices.AHCI),
    ],
)
def test_a_guest_gets_the_devices_of_its_plan_or_those_that_its_repair_found_it_to_need(
    planned: str, found: dict[str, str], expected: Devices, world: World
) -> None:
    asked: list[Devices | None] = []

    class Finds(Repairs):
        def __call__(self, job: RepairJob) -> dict[str, Any]:
            asked.append(job.devices)
            return {"changes": 2, **found}

    world.repairer = Finds(world.events)
    world.start_service()
    plan = parse_plan(f"{{plan: p, groups: [{{servers: [{{name: web01{planned}}}]}}]}}")
    run = world.perform(world.plan(RunKind.DRILL, plan))
    assert [spec.devices for spec in world.site.specs.values()] == [expected]
    (launch,) = run.launches()
    assert launch.result["devices"] == expected
    assert ("AHCI disks and an e1000e card" in describe(launch)) is ("devices: ahci" in planned)
    assert asked == ([] if "false" in planned else [expected if planned else None])
    assert last_boots([run]) == {}, "no gate says anything"


def test_a_service_that_stops_gives_a_repair_up_and_begins_it_again_later(world: World) -> None:
    begun = threading.Event()

    class Slow(Repairs):
        def __call__(self, job: RepairJob) -> dict[str, Any]:
            begun.set()
            while not job.stopped():
                time.sleep(0.001)
            raise RecoveryError("the boot repair was stopped")

    world.repairer = Slow(world.events)
    world.start_service().start(run := world.plan(RunKind.DRILL))
    assert begun.wait(60)
    world.executor.stop()
    run = world.store.get(run.id)
    assert (run.state, run.steps[0].state, run.steps[0].error) == (RunState.RUNNING, StepState.RUNNING, None)
    world.repairer = Repairs(world.events)
    world.start_service().resume()
    assert world.executor.wait(run.id).state is RunState.SUCCEEDED
    assert world.events == ["copy web01", "remove", "copy web01", "repair web01", "boot web01"]


@pytest.mark.parametrize(
    ("gates", "console", "expected", "warned"),
    [
        ("[{console: {text: up}}]", "up", RunState.SUCCEEDED, True),
        ("[{console: {text: up}}, {console: {text: never}}]", "up", RunState.FAILED, False),
        ("[]", "up", RunState.FAILED, False),
    ],
)
def test_a_repair_that_failed_is_a_warning_where_every_gate_says_that_the_server_came_up(
    world: World, gates: str, console: str, expected: RunState, warned: bool
) -> None:
    world.repairer = repairs = Repairs(world.events)
    repairs.failure = RecoveryError("its root filesystem cannot be read")
    world.site.console_text = console
    world.start_service()
    plan = parse_plan(f"{{plan: p, on_failure: retry 1, groups: [{{servers: [{{name: web01, gates: {gates}}}]}}]}}")
    run = world.perform(world.plan(RunKind.DRILL, plan))
    assert [step.state for step in run.steps][:2] == [StepState.FAILED, StepState.DONE]
    assert run.state is expected
    document = run_to_json(run, {}, NOW)
    said = ["repair web01: its root filesystem cannot be read"]
    assert (document["warnings"], document["rto_seconds"] is not None) == (said if warned else [], warned)
    assert f"{run.state}; 'repair web01': its root filesystem cannot be read" in world.control.audits[-1]


def test_the_guests_agent_is_waited_for_and_asked(world: World) -> None:
    plan = parse_plan(
        "{plan: p, groups: [{servers: [{name: web01, gates: [{heartbeat: {}}, {command: {name: db-ok}}]}]}]}"
    )
    run = world.plan(RunKind.FAILOVER, plan)
    world.control.change("id-web01", last_seen_seconds=None)
    said: list[str | None] = []

    def come() -> None:
        said.append(world.store.get(run.id).steps[-2].waits_for)
        world.control.change("id-web01", last_seen_seconds=1.0)

    world.clock.on_wait = come
    assert world.perform(run).state is RunState.SUCCEEDED
    assert said == ["its agent's heartbeat, for up to 300 s"]
    assert world.events == ["hand to the instance", "boot web01", "run db-ok"]


def test_a_command_that_fails_in_the_guest_is_asked_for_again_until_its_time_is_over(world: World) -> None:
    plan = parse_plan(
        "{plan: p, groups: [{servers: [{name: web01, gates: [{command: {name: db-ok, timeout_seconds: 12}}]}]}]}"
    )
    world.control.command_ends = CommandState(error="it ended with exit status 1")
    run = world.perform(world.plan(RunKind.FAILOVER, plan))
    assert "last seen: db-ok: it ended with exit status 1" in (run.steps[-1].error or "")
    assert world.events.count("run db-ok") == 3
