"""Ending a run: when it may be ended, and how what it made is taken back. Repeatable, like every step."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from agent.protocol.errors import Conflict, RecoveryError, UnderstudyError
from recovery.actions import Repairer, giving_way, launch_spec, poll, repair_job
from recovery.checks import home_servers
from recovery.clock import Clock
from recovery.control import Control
from recovery.runs import Run, RunKind, RunState, Step, StepState
from recovery.sites.contract import InstanceState, Site

ROLLBACK_SECONDS = 24 * 3600.0
"""How long a failover can be undone, unless it is committed before."""

log = logging.getLogger(__name__)


def refuse_end(run: Run, failbacks: Sequence[Run], control: Control, *, force: bool) -> None:
    """Raises Conflict, saying what would be lost, unless this run may be ended. `failbacks` bring it home, or did."""
    if run.kind.takes_over:
        _refuse_failover_end(run, failbacks, control, force=force)
    elif run.kind is RunKind.FAILBACK and run.state is not RunState.SUCCEEDED:
        _refuse_failback_end(run, control, force=force)


def _refuse_failover_end(run: Run, failbacks: Sequence[Run], control: Control, *, force: bool) -> None:
    for other in failbacks:
        if other.state in (RunState.RUNNING, RunState.FAILED, RunState.ENDING):
            hint = f"finish it, or call it off: understudy end {other.id}"
            raise Conflict(f"{run.id} is being brought home by {other.id} ({other.state})", hint)
    home = home_servers(run, failbacks)
    away = [step for step in run.launches() if _begun(step) and step.args["server_id"] not in home]
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
    if settle.state is StepState.DONE:
        if not force and any(step.action == "wait" and step.state is not StepState.DONE for step in run.steps):
            raise Conflict(
                f"{name} is at home: ending {run.id} removes its instance before the grace time is over",
                f"let it pass, or do without the instance: understudy end {run.id} --force",
            )
        return
    if _begun(settle):
        raise Conflict(f"{name} is at home already, so {run.id} can only be finished", f"understudy retry {run.id}")
    if _begun(hand_home) and not force and control.home_arrived(hand_home.args["server_id"], run.id):
        raise Conflict(
            f"{name} has booted at home: calling {run.id} off loses what it did there since",
            f"finish it: understudy retry {run.id}; or lose that: understudy end {run.id} --force",
        )


def not_called_off(run: Run) -> str | None:
    """Why this failback could not be called off, as it was to be; else None. A step says so that never began."""
    if run.kind is not RunKind.FAILBACK or run.state is not RunState.FAILED:
        return None
    settle = _step(run, "settle")
    return settle.error if settle.state is StepState.FAILED and settle.started_at is None else None


def mark_not_called_off(run: Run, error: UnderstudyError) -> int:
    """Have the run say so; the position of the step that does."""
    settle = _step(run, "settle")
    settle.state, settle.error, settle.waits_for = StepState.FAILED, str(error), None
    return run.steps.index(settle)


def mark_to_be_called_off(run: Run) -> int:
    """The same taken back: it is about to be tried again."""
    settle = _step(run, "settle")
    settle.state, settle.error = StepState.PENDING, None
    return run.steps.index(settle)


def refuse_rollback(run: Run, now: float) -> None:
    """Raises Conflict unless this failover may be undone: in its window, and not committed."""
    if run.kind is not RunKind.FAILOVER:
        raise Conflict(f"{run.id} is a {run.kind}, and only a failover can be rolled back")
    hint = f"bring it home: understudy failback {run.id}; or give it up: understudy end {run.id} --force"
    if run.committed_at is not None:
        raise Conflict(f"{run.id} was committed", hint)
    if run.state not in (RunState.ENDING, RunState.ENDED) and now > run.created_at + ROLLBACK_SECONDS:
        raise Conflict(f"{run.id} began more than {ROLLBACK_SECONDS / 3600:g} h ago", hint)


def refuse_commit(run: Run) -> None:
    """Raises Conflict unless this failover may be made final, or this failback may be told to cut over."""
    if run.kind is RunKind.FAILBACK:
        if not any(step.action == "await_cut_over" for step in run.steps):
            raise Conflict(f"{run.id} waits for nobody's word to cut over", "say --hold when it begins")
        if run.state in (RunState.ENDING, RunState.ENDED):
            raise Conflict(f"{run.id} was called off", "see: understudy runs")
        return
    if run.kind is not RunKind.FAILOVER or run.state not in (RunState.SUCCEEDED, RunState.FAILED):
        raise Conflict(
            f"{run.id} is a {run.kind} that is {run.state}", "a failover can be committed once it has come up"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Undo:
    """What taking back needs. Call it with a run and its failbacks; repeatable."""

    site: Site
    control: Control
    clock: Clock
    interrupt: threading.Event
    repairer: Repairer | None = None

    def __call__(self, run: Run, failbacks: Sequence[Run]) -> None:
        """Take back what the run made. Raises Interrupted, and whatever the site and the control raise."""
        if run.kind is not RunKind.FAILBACK:
            self._undo_boots(run, failbacks)
        elif _step(run, "settle").state is StepState.DONE:
            self.site.end(_step(run, "retire").args["instance_id"])  # it came home while it was being called off
        else:
            self._back_to_the_instance(run)

    def _undo_boots(self, run: Run, failbacks: Sequence[Run]) -> None:
        for step in run.launches():
            self.site.end(step.args["instance_id"])
        home = home_servers(run, failbacks)
        taken = {
            step.args["server_id"]: step for step in run.steps if step.action == "hand_to_instance" and _begun(step)
        }
        for server_id, step in taken.items():
            if server_id not in home:  # nobody plays the server now, so the machine that was it may be it again
                self.control.give_back(server_id, step.args["machine_id"], f"{run.id}.end")
        for step in run.steps:
            if step.action == "fence_source" and _begun(step) and step.args["server_id"] not in taken:
                self.control.release(step.args["server_id"], f"{run.id}.release.{step.args['server_id']}")

    def _back_to_the_instance(self, run: Run) -> None:
        """A failback that is called off leaves the server where it was: running as the failover's instance."""
        hand_home, shut_down = _step(run, "hand_home"), _step(run, "shut_down")
        if _begun(hand_home):
            # the epoch that it was handed home at: nobody else may have taken it since
            about, epoch = hand_home.args, hand_home.result.get("epoch")
            self.control.hand_to_instance(about["server_id"], about["machine_id"], f"{run.id}.end", epoch)
        if not _begun(shut_down) or run.failover_run is None:
            return

        instance_id = shut_down.args["instance_id"]

        def stopped() -> InstanceState | None:
            state = self.site.watch(instance_id).state
            return None if state in (InstanceState.RUNNING, InstanceState.PENDING) else state

        # Once asked, a guest may shut down at any time: one that is started too early would go away again.
        # GONE is left alone: launching would boot the failover's point again, which is older.
        limit_seconds = shut_down.args["limit_seconds"]
        if poll(stopped, self.clock, self.interrupt, limit_seconds) is InstanceState.STOPPED:
            self._repair_again(run)
            self.site.launch(launch_spec(run.failover_run, shut_down.args["launch"]))

    def _repair_again(self, run: Run) -> None:
        """What was taken back for home is needed here again."""
        undone = next((step for step in run.steps if step.action == "undo_repair" and _begun(step)), None)
        if undone is None or self.repairer is None:
            return
        job = repair_job(self.site, undone.args["repaired_by"], undone.args["launch"], self.interrupt)
        try:
            with giving_way(self.interrupt):
                self.repairer.undo(job)  # one that was cut off is carried to its end first
                self.repairer(job)
        except RecoveryError as error:
            # it was booted in this state before; not to start it at all would be worse
            log.warning("%s is started as it is: %s", job.server, error)


def _step(run: Run, action: str) -> Step:
    return next(step for step in run.steps if step.action == action)


def _begun(step: Step) -> bool:
    return step.state is not StepState.PENDING
