"""python -m tests.faults.killing MARKS serve ...: a service that dies by SIGKILL at each boundary of its runs' steps.

Once each: when a step was stored as begun; when its work is done and that is not yet stored; when it is stored. The
same for the states of the runs. MARKS is a folder that holds an empty file for each place where it has died: the next
process, started on the same data, gets beyond it.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from recovery.runs import Run, RunState, Step, StepState
from service.cli import main
from service.store.runs import RunRows

MARKS = Path(sys.argv[1]) if __name__ == "__main__" else Path()

add, save_steps, save_state = RunRows.add, RunRows.save_steps, RunRows.save_state


def die_once(*places: str) -> None:
    new = [place for place in places if not (MARKS / place).exists()]
    for place in new:
        (MARKS / place).touch()
    if new:
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)  # no other thread gets any further either


def dying_add(rows: RunRows, run: Run) -> None:
    add(rows, run)
    die_once(f"{run.kind}.stored")


def dying_save_steps(rows: RunRows, run_id: str, changed: Mapping[int, Step]) -> None:
    kind = run_id.partition("-")[0]
    ended = {position: step for position, step in changed.items() if step.state is not StepState.RUNNING}
    die_once(*(f"{kind}.{position}.{step.action}.performed" for position, step in ended.items()))
    save_steps(rows, run_id, changed)
    die_once(
        *(
            f"{kind}.{position}.{step.action}.{'ended' if position in ended else 'begun'}"
            for position, step in changed.items()
        )
    )


def dying_save_state(rows: RunRows, run_id: str, state: RunState, ended_at: float | None) -> None:
    kind = run_id.partition("-")[0]
    die_once(f"{kind}.before-{state}")
    save_state(rows, run_id, state, ended_at)
    die_once(f"{kind}.{state}")


if __name__ == "__main__":
    for name, dying in (("add", dying_add), ("save_steps", dying_save_steps), ("save_state", dying_save_state)):
        setattr(RunRows, name, dying)
    sys.exit(main(sys.argv[2:]))
