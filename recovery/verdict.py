"""How a run ended, from its steps: what it failed at, and what is worth a warning and no more. Pure."""

from __future__ import annotations

from recovery.runs import Run, RunState, Step, StepState

MOST_TOLD = 10
"""Failed steps of a run that the audit trail names."""


def failures(run: Run) -> list[Step]:
    """What is not done, and should have been: with any of these the run has failed."""
    passed = warnings(run)
    return [step for step in run.steps if step.state is not StepState.DONE and step not in passed]


def warnings(run: Run) -> list[Step]:
    """Boot repairs that failed, of servers that came up all the same: every gate says so, and there is one."""
    return [
        step
        for step in run.steps
        if step.action == "repair" and step.state is StepState.FAILED and _came_up(run, step.args["instance_id"])
    ]


def concluded(run: Run, state: RunState) -> str:
    """What stays in the audit trail, whatever a retry makes of the steps."""
    failed = [step for step in run.steps if step.state is StepState.FAILED]
    told = [f"'{step.name}': {next(iter((step.error or '').splitlines()), '')}" for step in failed[:MOST_TOLD]]
    more = [f"and {len(failed) - MOST_TOLD} more"] if len(failed) > MOST_TOLD else []
    return "; ".join([str(state), *told, *more])


def _came_up(run: Run, instance_id: str) -> bool:
    gates = [step for step in run.steps if step.action == "gate" and step.args["instance_id"] == instance_id]
    return bool(gates) and all(gate.state is StepState.DONE for gate in gates)
