"""What a machine that is to become a server again has to do now, told from the server's failback. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from agent.protocol.messages import HomewardReply
from recovery.homeward import point_to_copy
from recovery.runs import Run, RunKind, RunState, Step, StepState

_ACTIONS = {"await_pull": "pull", "await_home": "boot"}
_AT_HOME = ("await_forward", "settle", "wait", "retire")
"""What is left once the server was seen at home."""


def guidance(runs: Iterable[Run], server_id: str, server: str) -> HomewardReply:
    """`runs` are the tenant's, newest first. What `HomewardReply` says of each field."""
    run = next((run for run in runs if _is_under_way(run, server_id)), None)
    if run is None:
        return HomewardReply(
            action="none", words=f"no failback of {server} is under way; at the service: understudy failback RUN"
        )
    if run.state is RunState.ENDING:
        return HomewardReply(action="wait", run=run.id, words=f"{run.id} was called off: {server} stays where it is")
    step = next((step for step in run.steps if step.state is not StepState.DONE), run.steps[-1])
    stage = str(step.args.get("stage", ""))
    if run.state is RunState.FAILED or step.state is StepState.FAILED:
        reason = next(iter((step.error or "").splitlines()), "")
        words = f"{run.id} failed at '{step.name}': {reason}; at the service: understudy retry {run.id}"
        return HomewardReply(action="wait", run=run.id, stage=stage, words=words)
    if step.action in _AT_HOME:
        return HomewardReply(action="none", run=run.id, stage=stage, words=f"{server} has been seen at home already")
    action = _ACTIONS.get(step.action, "wait")
    point = None if action == "wait" else point_to_copy(run.steps[: run.steps.index(step)])
    return HomewardReply(action=action, run=run.id, stage=stage, words=_words(step), point=point)


def _is_under_way(run: Run, server_id: str) -> bool:
    if run.kind is not RunKind.FAILBACK or run.state in (RunState.SUCCEEDED, RunState.ENDED):
        return False
    return any(step.args.get("server_id") == server_id for step in run.steps)


def _words(step: Step) -> str:
    return step.waits_for if step.waits_for and step.action not in _ACTIONS else step.name
