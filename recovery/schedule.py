"""Which of a run's steps may begin now: each waits for those that it comes after, and for nothing else. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from recovery.runs import Step, StepState


class Schedule:
    """The order of a run's steps (or, `closing`, of those that look back at them), from what has been reached on."""

    def __init__(self, steps: Sequence[Step], *, closing: bool = False) -> None:
        self._steps = steps
        self._closing = closing
        self._waiting_for: list[int] = [0] * len(steps)
        self._before: list[list[int]] = [[] for _ in steps]
        for position, step in enumerate(steps):
            for earlier in step.after:
                if not is_over(steps[earlier]):
                    self._waiting_for[position] += 1
                    self._before[earlier].append(position)

    def ready(self) -> list[int]:
        """At the beginning: what is neither over nor failed and waits for nothing, in the order of the steps."""
        return [
            position
            for position, step in enumerate(self._steps)
            if step.closing is self._closing
            and step.state in (StepState.PENDING, StepState.RUNNING)
            and not self._waiting_for[position]
        ]

    def over(self, position: int) -> list[int]:
        """What may begin now that this step has ended well, or was optional: nothing if it is neither."""
        if not is_over(self._steps[position]):
            return []
        freed = []
        for later in self._before[position]:
            self._waiting_for[later] -= 1
            if not self._waiting_for[later] and self._steps[later].state is not StepState.DONE:
                freed.append(later)
        return freed


def is_over(step: Step) -> bool:
    """Does what comes after this step go on?"""
    return step.state is StepState.DONE or (step.state is StepState.FAILED and step.optional)


def follows(steps: Sequence[Step], failed: Collection[int]) -> set[int]:
    """All that comes after these, directly or not."""
    found: set[int] = set()
    for position, step in enumerate(steps):  # a step never comes after a later one
        if any(earlier in failed or earlier in found for earlier in step.after):
            found.add(position)
    return found
