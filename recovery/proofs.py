"""What a run has shown about servers and their points: whether they boot here. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from recovery.preflight import Proof
from recovery.runs import Run, Step, StepState


def booted_point(launch: Step) -> str:
    """A source that was stopped in good order made a newer one than was planned."""
    return str(launch.result.get("point", launch.args["point"]))


def verdicts(run: Run) -> Iterator[tuple[Step, Proof]]:
    """Launches that somebody can say something about: there were gates, and nobody called the run off before they
    could tell."""
    gates: dict[str, list[Step]] = {}
    for step in run.steps:
        if step.action == "gate":
            gates.setdefault(step.args["instance_id"], []).append(step)
    for launch in run.launches():
        its_gates = gates.get(launch.args["instance_id"], [])
        at = max((gate.ended_at or run.created_at for gate in its_gates), default=run.created_at)
        if any(gate.state is StepState.FAILED and "called off" not in (gate.error or "") for gate in its_gates):
            yield launch, Proof(run=run.id, at=at, held=False)
        elif its_gates and all(gate.state is StepState.DONE for gate in its_gates):
            yield launch, Proof(run=run.id, at=at, held=True)
