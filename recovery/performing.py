"""Performs a run's steps: side by side where nothing orders them, each stored before and after."""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque

from agent.protocol.errors import InternalError, UnderstudyError
from recovery.actions import ACTIONS, Interrupted, Repairer, StepContext
from recovery.clock import Clock
from recovery.control import Control
from recovery.drills.witness import Witness
from recovery.runs import Run, RunStore, StepState
from recovery.saving import StepSaver
from recovery.schedule import Schedule
from recovery.scripts import Scripts
from recovery.sites.contract import Site

RETRY_SECONDS = 5.0
"""Between two tries of a step."""
PARALLEL_STEPS = 64
"""Most of them wait for a guest."""

log = logging.getLogger(__name__)


class Performer:
    """Call from any thread; one call for a run at a time."""

    def __init__(
        self,
        store: RunStore,
        site: Site,
        control: Control,
        clock: Clock,
        scripts: Scripts | None,
        repairer: Repairer | None,
        witness: Witness | None = None,
    ) -> None:
        self._store = store
        self._site = site
        self._control = control
        self._clock = clock
        self._scripts = scripts
        self._repairer = repairer
        self._witness = witness
        # One transaction at a time: a database that is asked by all at once makes them wait far longer.
        self._writing = threading.Lock()

    def perform(self, run: Run, interrupt: threading.Event) -> None:
        """Perform all steps that can be reached, then those that look back. Raises Interrupted, and as the store."""
        for closing in (False, True):
            self._perform_all(run, Schedule(run.steps, closing=closing), interrupt)

    def _perform_all(self, run: Run, schedule: Schedule, interrupt: threading.Event) -> None:
        saver = StepSaver(self._store, run, self._writing)
        waiting = deque(schedule.ready())
        ended: queue.SimpleQueue[tuple[int, BaseException | None]] = queue.SimpleQueue()
        at_work = 0
        failure: BaseException | None = None
        while at_work or (waiting and failure is None):
            if failure is None and interrupt.is_set():
                failure = Interrupted()
            if failure is None and not at_work and len(waiting) == 1:
                position = waiting.popleft()
                self._perform_step(run, position, interrupt, saver)  # nothing beside it: no thread is needed
                waiting.extend(schedule.over(position))
                continue
            while failure is None and waiting and at_work < PARALLEL_STEPS:
                arguments = (run, waiting.popleft(), interrupt, saver, ended)
                threading.Thread(target=self._work, args=arguments, name=run.id, daemon=True).start()
                at_work += 1
            if at_work:
                position, raised = ended.get()
                at_work -= 1
                if raised is None:
                    waiting.extend(schedule.over(position))
                elif failure is None:
                    # The others give way: the next turn begins anew, and no step may be performed twice at once.
                    failure = raised
                    interrupt.set()
        if failure is not None:
            raise failure

    def _work(
        self,
        run: Run,
        position: int,
        interrupt: threading.Event,
        saver: StepSaver,
        ended: queue.SimpleQueue[tuple[int, BaseException | None]],
    ) -> None:
        """One step in a thread of its own; the run's thread learns how it ended."""
        raised: BaseException | None = None
        try:
            self._perform_step(run, position, interrupt, saver)
        except BaseException as error:
            raised = error
        ended.put((position, raised))

    def _perform_step(self, run: Run, position: int, interrupt: threading.Event, saver: StepSaver) -> None:
        """Ends with the step DONE or FAILED. Raises Interrupted, with the step left RUNNING."""
        step = run.steps[position]

        def say(waits_for: str | None) -> None:
            if step.waits_for != waits_for:
                step.waits_for = waits_for
                saver.save(position)

        if step.started_at is None:
            step.started_at = self._clock.now()
        step.state = StepState.RUNNING
        saver.save(position)
        context = StepContext(
            run=run,
            position=position,
            site=self._site,
            control=self._control,
            clock=self._clock,
            interrupt=interrupt,
            say=say,
            scripts=self._scripts,
            repairer=self._repairer,
            witness=self._witness,
        )
        while True:
            try:
                step.result = ACTIONS[step.action](context)
                step.state, step.error = StepState.DONE, None
                break
            except Interrupted:
                raise
            except UnderstudyError as error:
                step.error = str(error)
            except Exception as error:
                log.exception("run %s: step %r failed in an unexpected way", run.id, step.name)
                step.error = str(InternalError(f"{type(error).__name__}: {error}"))
            if context.attempt >= step.retries:
                step.state = StepState.FAILED
                break
            context.attempt += 1
            say(f"try {context.attempt + 1} of {step.retries + 1}; the one before: {step.error.splitlines()[0]}")
            self._clock.wait(interrupt, RETRY_SECONDS)
            if interrupt.is_set():
                raise Interrupted
        step.waits_for = None
        step.ended_at = self._clock.now()
        saver.save(position)
