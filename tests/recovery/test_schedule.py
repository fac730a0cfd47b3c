from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from recovery.runs import Step, StepState
from recovery.schedule import Schedule


def steps_of(*after: list[int]) -> list[Step]:
    return [Step(name=str(position), action="x", after=earlier) for position, earlier in enumerate(after)]


def test_what_waits_for_nothing_may_begin_and_the_rest_when_all_before_it_is_over() -> None:
    steps = steps_of([], [], [0, 1], [2])
    schedule = Schedule(steps)
    assert schedule.ready() == [0, 1]
    steps[0].state = StepState.DONE
    assert schedule.over(0) == []
    steps[1].state = StepState.DONE
    assert schedule.over(1) == [2]


def test_a_failure_stops_what_comes_after_it_unless_it_was_optional() -> None:
    steps = steps_of([], [0])
    steps[0].state = StepState.FAILED
    assert Schedule(steps).ready() == []
    steps[0].optional = True
    assert Schedule(steps).ready() == [1]


def test_what_was_under_way_when_the_service_was_killed_begins_again() -> None:
    steps = steps_of([], [0], [1])
    steps[0].state, steps[1].state = StepState.DONE, StepState.RUNNING
    assert Schedule(steps).ready() == [1]


def earlier_ones(position: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, position - 1), unique=True) if position else st.just([])


graphs = st.integers(1, 12).flatmap(lambda count: st.tuples(*map(earlier_ones, range(count))))


@given(graphs, st.data())
def test_every_step_begins_once_and_never_before_those_it_comes_after(
    graph: tuple[list[int], ...], data: st.DataObject
) -> None:
    steps = steps_of(*graph)
    schedule = Schedule(steps)
    waiting, begun = schedule.ready(), 0
    while waiting:
        position = waiting.pop(data.draw(st.integers(0, len(waiting) - 1)))
        assert all(steps[earlier].state is StepState.DONE for earlier in steps[position].after)
        steps[position].state = StepState.DONE
        begun += 1
        waiting += schedule.over(position)
    assert begun == len(steps)
