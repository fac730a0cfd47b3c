"""The closing steps of a drill: however its gates end, what became of it is looked at, and written down last."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from agent.protocol.errors import SiteError
from recovery.drills.reaper import Reaper
from recovery.drills.witness import CheckedFilesystem, CheckJob, Soundness
from recovery.plans import parse_plan
from recovery.report import rto_seconds
from recovery.runs import Run, RunKind, RunState, StepState
from recovery.sites.contract import InstanceState
from tests.recovery.memory_control import make_point, make_server
from tests.recovery.world import World

PAIR = """
plan: pair
groups:
- servers: [{name: db01, gates: [{console: {text: "login:"}}]}]
- servers: [{name: web01, gates: [{console: {text: "login:"}}]}]
"""


@dataclass
class MemoryWitness:
    """Keeps what it is told; `found` is what each check of filesystems finds."""

    pictures: dict[str, bytes] = field(default_factory=dict)
    jobs: list[CheckJob] = field(default_factory=list)
    found: list[CheckedFilesystem] = field(default_factory=list)
    testified: list[Run] = field(default_factory=list)
    unchecked: str | None = None

    def keep_picture(self, run_id: str, server_id: str, picture: bytes) -> dict[str, Any]:
        self.pictures[server_id] = picture
        return {"file": f"{server_id}.png"}

    def why_unchecked(self) -> str | None:
        return self.unchecked

    def check_filesystems(self, job: CheckJob) -> list[CheckedFilesystem]:
        self.jobs.append(job)
        return self.found

    def testify(self, run: Run) -> dict[str, Any]:
        self.testified.append(run)
        return {"verdict": "told"}


@pytest.fixture
def witness() -> MemoryWitness:
    return MemoryWitness()


@pytest.fixture
def world(witness: MemoryWitness) -> World:
    made = World("web01", "db01")
    made.control.servers["db01"] = make_server("db01")
    made.control.points_by_server["id-db01"] = [make_point("p-db01-1", "db01")]
    made.witness = witness
    made.start_service()
    return made


def drill(world: World) -> Run:
    return world.perform(world.plan(RunKind.DRILL, parse_plan(PAIR)))


def states(run: Run) -> dict[str, StepState]:
    return {step.name: step.state for step in run.steps}


def test_pictures_and_filesystems_of_each_server_come_last_and_evidence_after_them(
    world: World, witness: MemoryWitness
) -> None:
    run = drill(world)
    assert run.state is RunState.SUCCEEDED
    assert [step.name for step in run.steps][-5:] == [
        "picture of db01",
        "picture of web01",
        "filesystems of db01",
        "filesystems of web01",
        "evidence",
    ]
    assert set(witness.pictures) == {"id-db01", "id-web01"}
    assert [job.volumes for job in witness.jobs] == [["id-db01/0/p-db01-1"], ["id-web01/0/p-web01-1"]]
    (testified,) = witness.testified
    assert all(step.state is StepState.DONE for step in testified.steps if step.action != "evidence")


def test_a_failover_takes_no_pictures_and_writes_no_evidence(world: World) -> None:
    run = world.plan(RunKind.FAILOVER)
    assert not [step for step in run.steps if step.closing]


def test_what_looking_back_takes_is_no_part_of_the_rto(world: World, witness: MemoryWitness) -> None:
    run = drill(world)
    last_gate = max(step.ended_at or 0 for step in run.steps if step.action == "gate")
    assert rto_seconds(run) == round(last_gate - run.created_at, 3)
    run.steps[-2].state = StepState.FAILED
    assert rto_seconds(run) is not None, "the gates have held, whatever was found afterwards"


def test_a_drill_whose_gate_fails_is_looked_at_all_the_same(world: World, witness: MemoryWitness) -> None:
    world.site.console_text = "Kernel panic"
    run = drill(world)
    assert run.state is RunState.FAILED
    assert states(run)["gate db01: 'login:' on the console"] is StepState.FAILED
    assert states(run)["launch web01"] is StepState.PENDING, "its group was never reached"
    assert states(run)["evidence"] is StepState.DONE
    assert set(witness.pictures) == {"id-db01"}
    taken = next(step for step in run.steps if step.name == "picture of db01")
    assert taken.result == {"console": ["Kernel panic"], "file": "id-db01.png"}
    missing = next(step for step in run.steps if step.name == "picture of web01")
    assert missing.state is StepState.DONE
    assert "no picture" in missing.result["note"]


def test_a_damaged_filesystem_fails_the_drill_and_says_where(world: World, witness: MemoryWitness) -> None:
    witness.found = [
        CheckedFilesystem(where="volume 0 partition 1", kind="ext4", soundness=Soundness.SOUND),
        CheckedFilesystem(where="volume 1", kind="xfs", soundness=Soundness.DAMAGED, said="bad magic"),
    ]
    run = drill(world)
    assert run.state is RunState.FAILED
    step = next(step for step in run.steps if step.name == "filesystems of db01")
    assert "db01: the xfs on volume 1 is damaged in point p-db01-1: bad magic" in (step.error or "")
    assert [entry["soundness"] for entry in step.result["filesystems"]] == ["sound", "damaged"]
    assert states(run)["evidence"] is StepState.DONE, "what was found is evidence"


def test_where_nothing_can_be_checked_the_drill_says_so_and_holds(world: World, witness: MemoryWitness) -> None:
    witness.unchecked = "there is no kernel here"
    run = drill(world)
    assert run.state is RunState.SUCCEEDED
    step = next(step for step in run.steps if step.name == "filesystems of db01")
    assert step.result["note"] == "not checked: there is no kernel here"


def test_a_filesystem_that_could_not_be_looked_at_is_no_damage(world: World, witness: MemoryWitness) -> None:
    witness.found = [CheckedFilesystem(where="volume 0", kind="ntfs", soundness=Soundness.UNKNOWN, said="no ntfsfix")]
    run = drill(world)
    assert run.state is RunState.SUCCEEDED
    step = next(step for step in run.steps if step.name == "filesystems of db01")
    assert step.result["note"] == "0 sound; unknown: ntfs on volume 0 (no ntfsfix)"


def test_a_drill_that_is_tried_again_is_looked_at_again(world: World, witness: MemoryWitness) -> None:
    world.site.console_text = "Kernel panic"
    run = drill(world)
    world.site.console_text = "login:"
    world.executor.retry(run.id)
    run = world.executor.wait(run.id)
    assert run.state is RunState.SUCCEEDED
    assert set(witness.pictures) == {"id-db01", "id-web01"}
    assert len(witness.testified) == 2


def test_a_drill_that_is_called_off_leaves_no_evidence(world: World, witness: MemoryWitness) -> None:
    def call_off() -> None:
        world.executor.end(run.id)

    world.site.console_text = "Kernel panic"
    world.clock.on_wait = call_off
    run = world.plan(RunKind.DRILL, parse_plan(PAIR))
    world.executor.start(run)
    assert world.executor.wait(run.id).state is RunState.ENDED
    assert witness.testified == []


# --- the reaper ----------------------------------------------------------------------------------------------------


def reap(world: World) -> list[str]:
    """One sweep; what it told."""
    told: list[str] = []
    reaper = Reaper(
        world.store,
        world.site,  # type: ignore[arg-type]
        world.executor.end,
        lambda tenant, words: told.append(words),
        world.clock.now,
    )
    reaper.sweep()
    return told


def test_a_drill_is_ended_when_its_time_to_live_is_over_and_not_before(world: World) -> None:
    run = world.plan(RunKind.DRILL)
    run.expires_at = run.created_at + 3600
    run = world.perform(run)
    world.clock.seconds = run.created_at + 3599
    assert reap(world) == []
    world.clock.seconds += 1
    assert reap(world) == [f"{run.id} of web01 is ended: its time to live is over"]
    assert world.executor.wait(run.id).state is RunState.ENDED
    assert world.site.instances() == []
    assert reap(world) == []


@pytest.mark.parametrize("console", ["login:", "Kernel panic"])
def test_a_scheduled_drill_is_ended_as_soon_as_its_verdict_is_there(world: World, console: str) -> None:
    world.site.console_text = console
    run = world.plan(RunKind.DRILL)
    run.scheduled = True
    run = world.perform(run)
    assert reap(world) == [f"{run.id} of web01 is ended: it was scheduled, and its verdict is there"]
    assert world.executor.wait(run.id).state is RunState.ENDED


def test_a_failover_is_nobodys_to_end(world: World) -> None:
    run = world.fail_over()
    world.clock.seconds += 1e9
    assert reap(world) == []
    del world.store.rows[run.id]  # the database was restored from an older backup
    assert reap(world) == []
    assert [instance.state for instance in world.site.instances()] == [InstanceState.RUNNING]


def test_what_drills_left_behind_is_removed_and_what_runs_is_not(world: World) -> None:
    lost, ended, live = (world.perform(world.plan(RunKind.DRILL)) for _ in range(3))
    del world.store.rows[lost.id]
    world.store.save_state(ended.id, RunState.ENDED, world.clock.now())  # its end was cut off, or its site forgot
    reap(world)
    assert {instance.run_id for instance in world.site.instances()} == {live.id}


def test_one_instance_that_cannot_be_removed_does_not_keep_the_others(world: World) -> None:
    runs = [world.perform(world.plan(RunKind.DRILL)) for _ in range(2)]
    for run in runs:
        world.store.save_state(run.id, RunState.ENDED, world.clock.now())
    failures = [SiteError("busy")]

    def before(what: str) -> None:
        if what == "end" and failures:
            raise failures.pop()

    world.site.before = before
    reap(world)
    assert len(world.site.instances()) == 1
    reap(world)
    assert world.site.instances() == []
