from __future__ import annotations

from recovery.proofs import proven_points, proven_servers
from recovery.runs import Run, RunKind, Step, StepState


def run(point: str, gate: StepState, error: str | None = None, server: str = "web01") -> Run:
    args = {"instance_id": "i-1", "point": point, "server": server}
    steps = [
        Step(name="launch", action="launch", args=args, state=StepState.DONE),
        Step(name="gate", action="gate", args=args, state=gate, error=error),
    ]
    return Run(id="r", tenant="t", kind=RunKind.DRILL, plan="web01", steps=steps)


def test_a_point_is_bootable_once_every_gate_of_a_run_held_and_the_newest_run_counts() -> None:
    newest_first = [
        run("a", StepState.DONE),
        run("a", StepState.FAILED, "no answer"),
        run("b", StepState.FAILED, "no answer"),
        run("c", StepState.RUNNING),
        run("d", StepState.FAILED, "called off: the run was ended"),
    ]
    assert proven_points(newest_first) == {"a": True, "b": False}


def test_a_server_boots_as_the_newest_run_that_could_tell_says() -> None:
    newest_first = [
        run("b", StepState.RUNNING),
        run("a", StepState.DONE),
        run("a", StepState.FAILED, "no answer"),
        run("x", StepState.FAILED, "no answer", server="db01"),
    ]
    proven = proven_servers(newest_first)
    assert {name: proof.held for name, proof in proven.items()} == {"web01": True, "db01": False}
