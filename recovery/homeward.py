"""From a failover to the steps of its failback. Pure."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any

from agent.protocol.errors import Conflict, NotFound
from recovery.control import Server
from recovery.planner import Ids, who
from recovery.readiness import repair_of
from recovery.runs import Run, RunKind, RunState, Step, StepState, chained

TAKE_POINT_SECONDS = 900.0
AGENT_SILENT_SECONDS = 60.0
SHUT_DOWN_SECONDS = 180.0


class Stage(enum.StrEnum):
    """Where a failback is, in an operator's words."""

    PREPARE = "prepare"
    SYNC = "sync while running"
    CUT_OVER = "cut over"
    UNDO_REPAIR = "undo boot repair"
    BOOT_AT_HOME = "boot at home"
    RESUME = "resume forward replication"
    RETIRE = "retire the instance"


def plan_failback(
    failover_run: Run, server: Server, ids: Ids, now: float, grace_seconds: float = 0.0, *, hold: bool = False
) -> Run:
    """The way home of one server that `failover_run` booted; its instance is kept for `grace_seconds` after that.
    `hold`: once it is copied, nothing is shut down until an operator confirms the cut-over.

    Raises Conflict or NotFound."""
    refuse_failback(failover_run)
    launches = [step for step in failover_run.launches() if step.args["server_id"] == server.id]
    if not launches:
        raise NotFound(f"{failover_run.id} did not boot {server.name}")
    launch = launches[0]
    if launch.state is not StepState.DONE:
        hint = f"try that again: understudy retry {failover_run.id}; or give it up: understudy end {failover_run.id}"
        raise Conflict(f"{failover_run.id} never got {server.name} to boot", hint)

    run_id = ids.run(RunKind.FAILBACK)
    steps = _steps(run_id, failover_run, launch, server.name, grace_seconds, hold=hold)
    return Run(
        id=run_id,
        tenant=failover_run.tenant,
        kind=RunKind.FAILBACK,
        plan=failover_run.plan,
        steps=chained(steps),
        created_at=now,
        failover_run=failover_run.id,
    )


def refuse_failback(run: Run) -> None:
    """Raises Conflict unless this is a failover that servers can be brought home from."""
    if run.kind is not RunKind.FAILOVER:
        raise Conflict(f"{run.id} is a {run.kind}, and only a failover can be brought home")
    if run.state is RunState.ENDED:
        raise Conflict(f"{run.id} has ended: nothing of it runs here any more", "see: understudy runs")
    if run.state not in (RunState.SUCCEEDED, RunState.FAILED):
        raise Conflict(f"{run.id} is {run.state}", "a failover can be brought home once it has come up")


def point_to_copy(steps: Sequence[Step]) -> str:
    """What an `await_pull` after these steps waits for: the newest point that they made."""
    return next(str(step.result["point"]) for step in reversed(steps) if step.action in ("take_point", "capture"))


def _steps(run_id: str, failover_run: Run, launch: Step, name: str, grace_seconds: float, *, hold: bool) -> list[Step]:
    about = who(launch)

    def step(stage: Stage, title: str, action: str, **more: Any) -> Step:
        return Step(name=title.format(name), action=action, args={**about, "stage": stage.value, **more})

    limits = {"limit_seconds": TAKE_POINT_SECONDS, "silent_seconds": AGENT_SILENT_SECONDS}
    steps = [
        step(Stage.PREPARE, "take a point of {}", "take_point", label=f"{run_id}: before the shutdown", **limits),
        step(Stage.SYNC, "copy {} home while it runs", "await_pull"),
    ]
    if hold:  # which may take days: what changed meanwhile is copied before the server is away
        steps += [
            step(Stage.SYNC, "hold {} until its cut-over is confirmed", "await_cut_over"),
            step(Stage.SYNC, "take a newer point of {}", "take_point", label=f"{run_id}: after the hold", **limits),
            step(Stage.SYNC, "copy what changed on {} meanwhile", "await_pull"),
        ]
    # `launch` is what is booted again if the failback is called off
    down = {"limit_seconds": SHUT_DOWN_SECONDS, "launch": launch.args}
    steps.append(step(Stage.CUT_OVER, "shut down {}", "shut_down", **down))
    repair = repair_of(failover_run, launch.args["instance_id"])
    if repair is not None and repair.state is not StepState.PENDING and not repair.args.get("skip"):
        undo = {"launch": launch.args, "repaired_by": failover_run.id}
        steps.append(step(Stage.UNDO_REPAIR, "undo the boot repair of {}", "undo_repair", **undo))
    steps += [
        step(Stage.CUT_OVER, "take the last point of {}", "capture", label=f"{run_id}: final"),
        step(Stage.CUT_OVER, "copy the last changes of {} home", "await_pull"),
        step(Stage.CUT_OVER, "hand {} home", "hand_home"),
        step(Stage.BOOT_AT_HOME, "boot {} at home", "await_home"),
        step(Stage.RESUME, "first point of {} from home", "await_forward"),
        step(Stage.RESUME, "settle {}", "settle"),
    ]
    if grace_seconds:
        grace = {"seconds": grace_seconds, "group": f"{name} is at home, with its instance kept"}
        steps.append(step(Stage.RETIRE, "grace time of {}", "wait", **grace))
    return [*steps, step(Stage.RETIRE, "retire the instance of {}", "retire")]
