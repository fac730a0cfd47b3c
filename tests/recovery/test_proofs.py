from __future__ import annotations

import pytest

from recovery.proofs import verdicts
from recovery.runs import Run, RunKind, Step, StepState


def run(gate: StepState, error: str | None = None) -> Run:
    args = {"instance_id": "i-1", "point": "pt-1", "server": "web01"}
    steps = [
        Step(name="launch", action="launch", args=args, state=StepState.DONE),
        Step(name="gate", action="gate", args=args, state=gate, error=error),
    ]
    return Run(id="r", tenant="t", kind=RunKind.DRILL, plan="web01", steps=steps)


@pytest.mark.parametrize(
    ("gate", "error", "verdict"),
    [
        (StepState.DONE, None, [True]),
        (StepState.FAILED, "no answer", [False]),
        (StepState.RUNNING, None, []),
        (StepState.PENDING, None, []),
        (StepState.FAILED, "called off: the run was ended", []),
    ],
)
def test_a_server_is_proven_by_gates_that_held_and_only_a_gate_that_failed_speaks_against_it(
    gate: StepState, error: str | None, verdict: list[bool]
) -> None:
    assert [proof.held for _, proof in verdicts(run(gate, error))] == verdict


def test_without_gates_nothing_is_proven() -> None:
    bare = run(StepState.DONE)
    bare.steps.pop()
    assert list(verdicts(bare)) == []
