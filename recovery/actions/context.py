"""What every action gets: the step, and what it may use to reach its goal."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from agent.protocol.errors import UnderstudyError
from recovery.clock import Clock
from recovery.control import Control
from recovery.drills.witness import Witness
from recovery.runs import Run, Step
from recovery.scripts import Scripts
from recovery.sites.contract import Devices, Site

POLL_SECONDS = 0.3

T = TypeVar("T")


class Interrupted(Exception):
    """The service shuts down, or the run is being ended: leave the step as it is."""


@contextlib.contextmanager
def giving_way(interrupt: threading.Event) -> Iterator[None]:
    """Around work that fails when it is interrupted: that is no failure of its own. Raises Interrupted."""
    try:
        yield
    except UnderstudyError as error:
        if interrupt.is_set():
            raise Interrupted from error
        raise


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairJob:
    """An instance that is not running. `volumes` are its own copies, in boot order, as Site.instance_volume_location
    names them; `sources` what they were called at home ("/dev/sda"), where that is known.

    `devices` that it is to start with; None: what needs the least, as the result says.
    `record` names what is kept of it within the run (None: the server's id). `host_name`: it is a copy, and becomes a
    machine of its own that calls itself so.
    `stopped` is asked while something is awaited: the work is to be given up, with an error, when it says yes."""

    run_id: str
    server: str
    server_id: str
    instance_id: str
    volumes: tuple[str, ...]
    uefi: bool
    devices: Devices | None = None
    record: str | None = None
    host_name: str | None = None
    sources: tuple[str, ...] = ()
    stopped: Callable[[], bool] = lambda: False


class Repairer(Protocol):
    """Boot repair. After a crash it is called again, with volumes as they were before the first call."""

    def __call__(self, job: RepairJob) -> dict[str, Any]:
        """Make the volumes boot at the site. Returns, as JSON, what the step's result keeps of it (`note`: a line for
        people; `changes`: how many there were). Raises RecoveryError."""
        ...

    def undo(self, job: RepairJob) -> dict[str, Any]:
        """Take back what the repair in `job.run_id` changed, on volumes that have lived on since; for a step's result.
        Done already, or nothing was changed: does nothing. Raises RecoveryError."""
        ...


@dataclass(slots=True, kw_only=True)
class StepContext:
    """One step being performed. `say` stores what the step waits for; None: nothing in particular.

    `attempt` counts from 0; `interrupt` asks to raise Interrupted."""

    run: Run
    position: int
    site: Site
    control: Control
    clock: Clock
    interrupt: threading.Event
    say: Callable[[str | None], None]
    attempt: int = 0
    scripts: Scripts | None = None
    repairer: Repairer | None = None
    witness: Witness | None = None
    args: Mapping[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.args = self.step.args

    @property
    def step(self) -> Step:
        return self.run.steps[self.position]

    @property
    def server(self) -> str:
        return str(self.args["server"])

    @property
    def server_id(self) -> str:
        return str(self.args["server_id"])

    @property
    def instance_id(self) -> str:
        return str(self.args["instance_id"])

    @property
    def machine_id(self) -> str:
        return str(self.args["machine_id"])

    @property
    def request_id(self) -> str:
        """The same each time this step is performed, so that asking twice asks once."""
        return f"{self.run.id}.{self.position}"

    def poll(self, look: Callable[[], T | None], limit_seconds: float | None = None) -> T | None:
        return poll(look, self.clock, self.interrupt, limit_seconds)


def poll(
    look: Callable[[], T | None], clock: Clock, interrupt: threading.Event, limit_seconds: float | None = None
) -> T | None:
    """Look again and again until there is something; None when the limit has passed. Raises Interrupted."""
    deadline = None if limit_seconds is None else clock.monotonic() + limit_seconds
    while True:
        if interrupt.is_set():
            raise Interrupted
        found = look()
        if found is not None or (deadline is not None and clock.monotonic() >= deadline):
            return found
        clock.wait(interrupt, POLL_SECONDS)
