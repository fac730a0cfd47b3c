"""Performs runs: each in a thread of its own, its steps stored before and after, side by side where nothing orders
them; and after a crash goes on.

Nothing that matters is in memory: every turn of a run's thread begins by reading the run from the store.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection
from dataclasses import dataclass, field

from agent.protocol.errors import Conflict, NotFound, UnderstudyError
from recovery.actions import Interrupted, Repairer
from recovery.checks import booted_servers, home_servers, refuse_conflict
from recovery.clock import Clock, SystemClock
from recovery.control import Control
from recovery.drills.witness import Witness
from recovery.ending import (
    Undo,
    mark_not_called_off,
    mark_to_be_called_off,
    not_called_off,
    refuse_commit,
    refuse_end,
    refuse_rollback,
)
from recovery.performing import Performer
from recovery.plans import Caps
from recovery.prices import RunPrice, over_caps, refuse_over_cap, running_prices
from recovery.retrying import told_of_retry, tried_again
from recovery.runs import Run, RunKind, RunState, RunStore, StepState
from recovery.scripts import Scripts
from recovery.sites.contract import Site
from recovery.verdict import concluded, failures

CALL_OFF_SECONDS = 300.0
"""For so long a failback is tried to be called off; then somebody has to decide."""

AGAIN_SECONDS = 5.0
"""Until what must not be given up (a store that does not answer, a removal) is tried again."""

log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class _Active:
    """A run that has a thread. `interrupt` makes a waiting step give way. `failing_since`: it cannot be ended, by the
    clock's monotonic time."""

    thread: threading.Thread
    interrupt: threading.Event = field(default_factory=threading.Event)
    failing_since: float | None = None


class Executor:
    """Call from any thread. One executor a store: two would perform the same runs twice."""

    def __init__(
        self,
        store: RunStore,
        site: Site,
        control: Control,
        clock: Clock | None = None,
        scripts: Scripts | None = None,
        repairer: Repairer | None = None,
        witness: Witness | None = None,
    ) -> None:
        self._store = store
        self._site = site
        self._control = control
        self._clock: Clock = clock or SystemClock()
        self._repairer = repairer
        self._performer = Performer(store, site, control, self._clock, scripts, repairer, witness)
        self._active: dict[str, _Active] = {}
        self._stopping = threading.Event()
        # Guards `_active` and each change of a run's state, so that an end is never overtaken by a success.
        self._lock = threading.Lock()

    # --- what the service calls ------------------------------------------------------------------------------------

    def start(self, run: Run, plan_caps: Caps | None = None, tenant_caps: Caps | None = None) -> None:
        """Store the run and begin it. Raises Conflict when another run has the server already, and RecoveryError when
        it would exceed a cap (the tenant's together with what runs now) and `run.over_cap` does not say why."""
        with self._lock:
            others = self._store.live(run.tenant)
            refuse_conflict(run, others)
            exceeded: list[str] = []
            if run.price:
                price = RunPrice(**run.price)
                exceeded += over_caps(price, plan_caps or Caps(), f"plan {run.plan}")
                exceeded += over_caps(price, tenant_caps or Caps(), f"tenant {run.tenant}", running_prices(others))
            if run.over_cap is None:
                refuse_over_cap(exceeded)
            self._store.add(run)
            self._spawn(run.id)
            self._audit(run, "started")  # last: a run that is stored must not lack a thread
            if exceeded:
                self._audit(run, f"over the cap, because {run.over_cap}: {'; '.join(exceeded)}")

    def resume(self) -> list[str]:
        """After a start of the service: go on with all that was under way. Returns the runs' ids."""
        with self._lock:
            unfinished = [run.id for run in self._store.unfinished() if run.id not in self._active]
            for run_id in unfinished:
                self._spawn(run_id)
        return unfinished

    def retry(self, run_id: str, *, go_on: bool = False, dead: Collection[str] = ()) -> None:
        """Go on with a failed run at the step that failed; `go_on`: behind it. `dead`: servers whose sources could not
        be stopped, and somebody says that they are dead. A failback that could not be called off is called off again;
        `go_on`: it ends with everything as it is. Raises NotFound, Conflict, UsageError."""
        with self._lock:
            run = self._store.get(run_id)
            if run.state is not RunState.FAILED:
                raise Conflict(f"{run_id} is {run.state}", "only a failed run can be tried again")
            if (reason := not_called_off(run)) is not None:
                if go_on:
                    self._store.save_state(run_id, RunState.ENDED, self._clock.now())
                    self._audit(run, f"ended with everything as it is, since it could not be called off: {reason}")
                else:
                    self._begin_end(run, force=False)
                return
            again = tried_again(run, self._clock.now(), go_on=go_on, dead=dead)
            self._store.save_steps(run_id, again)
            self._store.save_state(run_id, RunState.RUNNING, None)
            if run_id not in self._active:
                self._spawn(run_id)
            self._audit(run, told_of_retry(run, again, dead))

    def end(self, run_id: str, *, force: bool = False) -> None:
        """Begin to remove all that the run made; wait() tells when it has. Ended already: does nothing.

        Raises NotFound, and Conflict (saying what would be lost) unless forced."""
        with self._lock:
            run = self._store.get(run_id)
            if run.state is RunState.ENDED:
                return
            if run.state is not RunState.ENDING:
                self._begin_end(run, force=force)
            elif run_id not in self._active:
                self._spawn(run_id)

    def _begin_end(self, run: Run, *, force: bool) -> None:
        again = mark_to_be_called_off(run) if not_called_off(run) is not None else None
        try:
            refuse_end(run, self._store.failbacks(run.id), self._control, force=force)
        except Conflict as error:
            if again is None:
                raise
            hint = (
                f"lose that: understudy end {run.id} --force; or leave all as it is: understudy retry {run.id} --go-on"
            )
            raise Conflict(error.message, hint) from None  # there is no way on for it any more
        self._store.save_state(run.id, RunState.ENDING, run.ended_at)
        if again is not None:  # last: without it nobody would know any more what a failed run was in the middle of
            self._store.save_step(run.id, again, run.steps[again])
        active = self._active.get(run.id)
        if active is None:
            self._spawn(run.id)
        else:
            active.interrupt.set()
        self._audit(run, "is being ended")

    def commit(self, run_id: str) -> None:
        """From now on this failover cannot be rolled back; or, of a failback that holds: it may cut over. Done already:
        does nothing. Raises NotFound, Conflict."""
        with self._lock:
            run = self._store.get(run_id)
            if run.committed_at is None:
                refuse_commit(run)
                self._store.save_committed(run_id, self._clock.now())
                if run_id in self._active:
                    self._active[run_id].interrupt.set()  # its thread has the run as it was before
                self._audit(run, "committed")

    def roll_back(self, run_id: str) -> None:
        """Undo a failover: as end(), and the machine that was the server before is it again.

        Raises NotFound, Conflict (it was committed, is being brought home, or is too old)."""
        refuse_rollback(self._store.get(run_id), self._clock.now())
        self.end(run_id, force=True)

    def wait(self, run_id: str, timeout_seconds: float | None = None) -> Run:
        """The run, once nothing is being done about it or the time is over."""
        with self._lock:
            active = self._active.get(run_id)
        if active is not None:
            active.thread.join(timeout_seconds)
        return self._store.get(run_id)

    def stop(self, timeout_seconds: float = 10.0) -> None:
        """The service ends: threads give way, runs stay as they are, and resume() goes on with them."""
        self._stopping.set()
        with self._lock:
            threads = [active.thread for active in self._active.values()]
            for active in self._active.values():
                active.interrupt.set()
        for thread in threads:
            thread.join(timeout_seconds)

    # --- a run's thread --------------------------------------------------------------------------------------------

    def _spawn(self, run_id: str) -> None:
        interrupt = threading.Event()
        # daemon: a site's call that hangs must not keep the service from ending; the step is repeatable
        thread = threading.Thread(target=self._drive, args=(run_id, interrupt), name=run_id, daemon=True)
        self._active[run_id] = _Active(thread=thread, interrupt=interrupt)
        thread.start()

    def _drive(self, run_id: str, interrupt: threading.Event) -> None:
        while not self._at_rest(run_id, interrupt):
            try:
                run = self._store.get(run_id)
                if run.state is RunState.RUNNING:
                    self._perform(run, interrupt)
                elif run.state is RunState.ENDING:
                    self._end(run, interrupt)
            except Interrupted:
                continue
            except Exception:
                # The store failed: forget the position, and ask it again.
                log.exception("run %s: cannot go on for now", run_id)
                self._clock.wait(interrupt, AGAIN_SECONDS)

    def _at_rest(self, run_id: str, interrupt: threading.Event) -> bool:
        """Is there nothing left to do? Then the thread has left `_active`, and who comes next starts a new one."""
        with self._lock:
            if not self._stopping.is_set():
                interrupt.clear()
                try:
                    if self._store.get(run_id).state in (RunState.RUNNING, RunState.ENDING):
                        return False
                except NotFound:
                    log.warning("run %s is not in the store any more", run_id)
                except Exception:
                    log.exception("run %s: the store does not answer", run_id)
                    return False
            del self._active[run_id]
            return True

    def _perform(self, run: Run, interrupt: threading.Event) -> None:
        self._performer.perform(run, interrupt)
        if failures(run):
            self._conclude(run, RunState.FAILED)
            return
        if run.kind is RunKind.FAILBACK:
            self._close_failover(run)
        self._conclude(run, RunState.SUCCEEDED)

    def _conclude(self, run: Run, state: RunState) -> None:
        with self._lock:
            if self._store.get(run.id).state is RunState.RUNNING:  # and not being ended meanwhile
                self._store.save_state(run.id, state, self._clock.now())
                self._audit(run, concluded(run, state))

    def _close_failover(self, failback: Run) -> None:
        """A failover whose servers are all home has nothing left: it has ended."""
        if failback.failover_run is None:
            return
        with self._lock:
            failover = self._store.get(failback.failover_run)
            home = home_servers(failover, self._store.failbacks(failover.id))
            if failover.state is not RunState.ENDED and booted_servers(failover).keys() <= home:
                self._store.save_state(failover.id, RunState.ENDED, self._clock.now())

    def _end(self, run: Run, interrupt: threading.Event) -> None:
        for position, step in enumerate(run.steps):
            if step.state is StepState.RUNNING:
                step.state, step.ended_at = StepState.FAILED, self._clock.now()
                step.error, step.waits_for = "called off: the run was ended", None
                self._store.save_step(run.id, position, step)
        last = len(run.steps) - 1
        try:
            undo = Undo(
                site=self._site,
                control=self._control,
                clock=self._clock,
                interrupt=interrupt,
                repairer=self._repairer,
            )
            undo(run, self._store.failbacks(run.id))
        except UnderstudyError as error:
            log.warning("run %s: cannot be ended yet: %s", run.id, error)
            if self._is_given_up(run, error):
                self._leave_as_it_is(run, error)
                return
            run.steps[last].waits_for = f"the removal of what the run made, tried again and again: {error}"
            self._store.save_step(run.id, last, run.steps[last])
            self._clock.wait(interrupt, AGAIN_SECONDS)
            return
        if run.steps[last].waits_for is not None:
            run.steps[last].waits_for = None
            self._store.save_step(run.id, last, run.steps[last])
        if run.kind is RunKind.FAILBACK:
            self._close_failover(run)
        with self._lock:
            self._store.save_state(run.id, RunState.ENDED, self._clock.now())
            self._audit(run, RunState.ENDED)

    def _is_given_up(self, run: Run, error: UnderstudyError) -> bool:
        """A removal never is: what is left behind costs money and gets in the way. A failback is, once its server is
        somebody else's, or nothing has helped for long: going back to the instance is no removal, and people wait."""
        if run.kind is not RunKind.FAILBACK or any(
            step.action == "settle" and step.state is StepState.DONE for step in run.steps
        ):
            return False
        active, now = self._active[run.id], self._clock.monotonic()
        if active.failing_since is None:
            active.failing_since = now
        return isinstance(error, Conflict) or now - active.failing_since >= CALL_OFF_SECONDS

    def _leave_as_it_is(self, run: Run, error: UnderstudyError) -> None:
        with self._lock:
            self._active[run.id].failing_since = None
            position = mark_not_called_off(run, error)
            self._store.save_step(run.id, position, run.steps[position])
            self._store.save_state(run.id, RunState.FAILED, self._clock.now())
            self._audit(run, f"could not be called off: {error}")

    def _audit(self, run: Run, what: str) -> None:
        self._control.audit(run.tenant, f"run.{run.kind}", f"{run.id} of {run.plan}: {what}")
