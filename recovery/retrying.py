"""What a failed run is asked for: try again what failed, go on behind it, or do without a source's word. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from agent.protocol.errors import Conflict, UsageError
from recovery.runs import Run, RunKind, Step, StepState

_OF_SOURCES = ("fence_source", "last_point")
_NEVER_PASSED = (*_OF_SOURCES, "hand_to_instance", "retire_source")
"""Two machines must never be one server."""


def tried_again(run: Run, now: float, *, go_on: bool, dead: Collection[str]) -> dict[int, Step]:
    """Steps of this failed run, by position, as they are to be stored before it goes on. `go_on`: what failed is passed
    over, and stays failed. `dead`: the names of servers without whose sources' word it goes on. Raises Conflict,
    UsageError."""
    changed = {position: _declared_dead(run.steps[position], now) for position in _unanswered(run, dead)}
    failed = [
        position
        for position, step in enumerate(run.steps)
        if step.state is StepState.FAILED and not step.closing and position not in changed
    ]
    if go_on:
        _refuse_passing(run, [run.steps[position] for position in failed])
        changed |= {position: replace(run.steps[position], optional=True) for position in failed}
    else:
        changed |= {position: _fresh(run.steps[position]) for position in [*failed, *_launches_of(run, failed)]}
    closing = [position for position, step in enumerate(run.steps) if step.closing]
    return changed | {position: _fresh(run.steps[position]) for position in closing}  # what looked back at the failure


def told_of_retry(run: Run, changed: Mapping[int, Step], dead: Collection[str]) -> str:
    """What the audit trail keeps of it."""
    passed = [step.name for position, step in changed.items() if step.optional and not run.steps[position].optional]
    told = [f"{name} declared dead" for name in dead] + [f"passed over '{name}'" for name in passed]
    return ", ".join(["tried again", *told])


def _unanswered(run: Run, dead: Collection[str]) -> list[int]:
    """What the sources of these servers were to do, and have not done."""
    found: list[int] = []
    for name in dead:
        its = [
            position
            for position, step in enumerate(run.steps)
            if step.action in _OF_SOURCES and step.args["server"] == name and step.state is not StepState.DONE
        ]
        if not its:
            raise UsageError(f"{run.id} does not wait for the source of {name!r}", f"see: understudy runs {run.id}")
        found += its
    return found


def _refuse_passing(run: Run, failed: Collection[Step]) -> None:
    if run.kind is RunKind.FAILBACK:
        raise Conflict("no step of a way home can be passed over", f"understudy retry {run.id}")
    for step in failed:
        if step.action in _NEVER_PASSED:
            name = step.args["server"]
            dead = f"if its source is dead: understudy retry {run.id} --declare-dead {name}"
            raise Conflict(
                f"'{step.name}' cannot be passed over: two machines must never be {name}",
                dead if step.action in _OF_SOURCES else f"understudy retry {run.id}",
            )


def _launches_of(run: Run, failed: Collection[int]) -> list[int]:
    """Where a gate failed, its launch comes before it: that starts an instance anew which has died."""
    instances = {run.steps[position].args["instance_id"] for position in failed if run.steps[position].action == "gate"}
    return [
        position
        for position, step in enumerate(run.steps)
        if step.action == "launch" and step.args["instance_id"] in instances
    ]


def _fresh(step: Step) -> Step:
    return replace(step, state=StepState.PENDING, started_at=None, ended_at=None, error=None, waits_for=None, result={})


def _declared_dead(step: Step, now: float) -> Step:
    result = {"note": "not waited for: an operator declared the source dead"}
    began = step.started_at or now
    return replace(
        step, state=StepState.DONE, started_at=began, ended_at=now, error=None, waits_for=None, result=result
    )
