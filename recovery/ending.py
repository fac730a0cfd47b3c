"""Ending a run: when it may be ended, and how what it made is taken back. Repeatable, like every step."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from agent.protocol.errors import Conflict
from recovery.actions import launch_spec, poll
from recovery.checks import home_servers
from recovery.clock import Clock
from recovery.control import Control
from recovery.planner import launch_steps
from recovery.runs import Run, RunKind, RunState, Step, StepState
from recovery.sites.contract import InstanceState, Site


def refuse_end(run: Run, runs: Sequence[Run], control: Control, *, force: bool) -> None:
    """Raises Conflict, saying what would be lost, unless this run may be ended. `runs` are the tenant's."""
    if run.kind is RunKind.FAILOVER:
        _refuse_failover_end(run, runs, control, force=force)
    elif run.kind is RunKind.FAILBACK and run.state is not RunState.SUCCEEDED:
        _refuse_failback_end(run, control, force=force)


def _refuse_failover_end(run: Run, runs: Sequence[Run], control: Control, *, force: bool) -> None:
    for other in runs:
        if other.failover_run == run.id and other.state in (RunState.RUNNING, RunState.FAILED, RunState.ENDING):
            hint = f"finish it, or call it off: understudy end {other.id}"
            raise Conflict(f"{run.id} is being brought home by {other.id} ({other.state})", hint)
    home = home_servers(run, runs)
    away = [step for step in launch_steps(run) if _begun(step) and step.args["server_id"] not in home]
    if not away or force:
        return
    losses = []
    for step in away:
        points = control.points(step.args["server_id"])
        newest = f"its newest point, {points[0].id} of {points[0].taken_at}" if points else "its failover"
        losses.append(f"all that {step.args['server']} did after {newest}")
    raise Conflict(
        f"ending {run.id} removes what runs in the place of the lost servers: {'; '.join(losses)} would be lost",
        f"bring it home first: understudy failback {run.id}; or lose that: understudy end {run.id} --force",
    )


def _refuse_failback_end(run: Run, control: Control, *, force: bool) -> None:
    hand_home, settle = _step(run, "hand_home"), _step(run, "settle")
    name = settle.args["server"]
    if _begun(settle):
        raise Conflict(f"{name} is at home already, so {run.id} can only be finished", f"understudy retry {run.id}")
    if _begun(hand_home) and not force and control.home_arrived(hand_home.args["server_id"], run.id):
        raise Conflict(
            f"{name} has booted at home: calling {run.id} off loses what it did there since",
            f"finish it: understudy retry {run.id}; or lose that: understudy end {run.id} --force",
        )


def undo(run: Run, runs: Sequence[Run], site: Site, control: Control, clock: Clock, interrupt: threading.Event) -> None:
    """Take back what the run made. Raises Interrupted, and whatever the site and the control raise."""
    if run.kind is RunKind.FAILBACK:
        if _step(run, "settle").state is StepState.DONE:
            site.end(_step(run, "retire").args["instance_id"])  # it came home while it was being called off
        else:
            _back_to_the_instance(run, site, control, clock, interrupt)
        return
    for step in launch_steps(run):
        site.end(step.args["instance_id"])
    home = home_servers(run, runs)
    for step in run.steps:
        if step.action == "hand_to_instance" and _begun(step) and step.args["server_id"] not in home:
            # Nobody plays the server now, so the machine at home may be it again, should it come back.
            control.hand_home(step.args["server_id"], step.args["machine_id"], f"{run.id}.end")
            control.settle(step.args["server_id"], f"{run.id}.end")


def _back_to_the_instance(run: Run, site: Site, control: Control, clock: Clock, interrupt: threading.Event) -> None:
    """A failback that is called off leaves the server where it was: running as the failover's instance."""
    hand_home, shut_down = _step(run, "hand_home"), _step(run, "shut_down")
    if _begun(hand_home):
        control.hand_to_instance(hand_home.args["server_id"], hand_home.args["machine_id"], f"{run.id}.end")
    if not _begun(shut_down) or run.failover_run is None:
        return

    instance_id = shut_down.args["instance_id"]

    def stopped() -> InstanceState | None:
        state = site.watch(instance_id).state
        return None if state in (InstanceState.RUNNING, InstanceState.PENDING) else state

    # Once asked, a guest may shut down at any time: one that is started too early would go away again.
    # GONE is left alone: launching would boot the failover's point again, which is older.
    if poll(stopped, clock, interrupt, shut_down.args["limit_seconds"]) is InstanceState.STOPPED:
        site.launch(launch_spec(run.failover_run, shut_down.args["launch"]))


def _step(run: Run, action: str) -> Step:
    return next(step for step in run.steps if step.action == action)


def _begun(step: Step) -> bool:
    return step.state is not StepState.PENDING
