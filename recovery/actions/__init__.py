"""What each step of a run does. Every action may be performed again from its beginning: it finds what it did before.

An action gets a StepContext, blocks until its goal is reached, and returns the step's result. It raises an
UnderstudyError when the goal cannot be reached, and Interrupted when the run is to pause.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from recovery.actions.boot import gate, launch, launch_spec, repair, repair_job, script, wait
from recovery.actions.context import Interrupted, Repairer, RepairJob, StepContext, giving_way, poll
from recovery.actions.drill import evidence, filesystems, picture
from recovery.actions.home import (
    await_cut_over,
    await_forward,
    await_home,
    await_pull,
    capture,
    hand_home,
    retire,
    settle,
    shut_down,
    take_point,
    undo_repair,
)
from recovery.actions.source import fence_source, hand_to_instance, last_point, retire_source

Action = Callable[[StepContext], dict[str, Any]]

ACTIONS: dict[str, Action] = {
    "fence_source": fence_source,
    "last_point": last_point,
    "hand_to_instance": hand_to_instance,
    "retire_source": retire_source,
    "repair": repair,
    "launch": launch,
    "gate": gate,
    "wait": wait,
    "script": script,
    "picture": picture,
    "filesystems": filesystems,
    "evidence": evidence,
    "take_point": take_point,
    "await_pull": await_pull,
    "await_cut_over": await_cut_over,
    "shut_down": shut_down,
    "undo_repair": undo_repair,
    "capture": capture,
    "hand_home": hand_home,
    "await_home": await_home,
    "await_forward": await_forward,
    "settle": settle,
    "retire": retire,
}

__all__ = [
    "ACTIONS",
    "Action",
    "Interrupted",
    "RepairJob",
    "Repairer",
    "StepContext",
    "giving_way",
    "launch_spec",
    "poll",
    "repair_job",
]
