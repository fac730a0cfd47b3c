from recovery.runs import Run, RunKind, Step, StepState
from service.api.views import SILENT_SECONDS, proven_bootable, server_to_json, why_deaf
from service.store.rows import ServerRow
from tests.service.store.rows_for_tests import manifest


def run(point: str, gate: StepState, error: str | None = None) -> Run:
    args = {"instance_id": "i-1", "point": point}
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
    assert proven_bootable(newest_first) == {"a": True, "b": False}


def test_lag_is_the_age_of_the_newest_points_instant() -> None:
    row = ServerRow(id="s", tenant="t", name="web01", created_at=0.0)
    point = manifest("pt-1", taken_at="1970-01-01T00:01:40.000Z").point
    assert server_to_json(row, point, 130.5)["lag_seconds"] == 30.5
    assert server_to_json(row, point, 90.0)["lag_seconds"] == 0.0
    assert server_to_json(row, None, 90.0) | {"lag_seconds": None, "last_point": None} == server_to_json(
        row, None, 90.0
    )


def test_a_command_to_an_agent_that_is_not_there_is_refused_at_once() -> None:
    never = ServerRow(id="s", tenant="t", name="web01", created_at=1000.0)
    silent = ServerRow(id="s", tenant="t", name="web01", created_at=0.0, last_seen_at=1000.0)
    late = 1000.0 + SILENT_SECONDS + 1
    for row, words in ((never, "never asked"), (silent, "silent for 121 s")):
        assert why_deaf(row, pushing=False, now=late - 1) is None
        assert why_deaf(row, pushing=True, now=late) is None
        assert words in str(why_deaf(row, pushing=False, now=late))
