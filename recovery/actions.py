"""What each step of a run does. Every action may be performed again from its beginning: it finds what it did before.

An action gets a StepContext, blocks until its goal is reached, and returns the step's result. It raises an
UnderstudyError when the goal cannot be reached, and Interrupted when the run is to pause.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from agent.protocol.errors import Conflict, GateFailed, NotFound, RecoveryError
from recovery.clock import Clock
from recovery.control import Control
from recovery.gates import check_gate, console_end, gate_from_json
from recovery.runs import Run, Step
from recovery.sites.contract import Instance, InstanceSpec, InstanceState, NetworkMode, Site, VolumeKey

POLL_SECONDS = 0.3
STOP_REPEAT_SECONDS = 10.0
LAUNCH_SECONDS = 600.0

T = TypeVar("T")


class Interrupted(Exception):
    """The service shuts down, or the run is being ended: leave the step as it is."""


@dataclass(slots=True, kw_only=True)
class StepContext:
    """One step being performed. `say` stores what the step waits for; None: nothing in particular."""

    run: Run
    position: int
    site: Site
    control: Control
    clock: Clock
    interrupt: threading.Event
    say: Callable[[str | None], None]
    args: Mapping[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.args = self.run.steps[self.position].args

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


Action = Callable[[StepContext], dict[str, Any]]


def hand_to_instance(context: StepContext) -> dict[str, Any]:
    epoch = context.control.hand_to_instance(context.server_id, context.machine_id, context.run.id)
    return {"epoch": epoch}


def launch(context: StepContext) -> dict[str, Any]:
    context.site.launch(launch_spec(context.run.id, context.args))

    def up() -> Instance | None:
        instance = context.site.watch(context.instance_id)
        return None if instance.state is InstanceState.PENDING else instance

    instance = context.poll(up, LAUNCH_SECONDS)
    if instance is None:
        raise RecoveryError(
            f"instance {context.instance_id} of {context.server} is still not up after {LAUNCH_SECONDS:g} s",
            "see what the site says about it, then retry",
        )
    if instance.state is not InstanceState.RUNNING:
        reason = f": {instance.detail}" if instance.detail else ""
        end = console_end(context.site, context.instance_id)
        raise RecoveryError(f"instance {context.instance_id} of {context.server} is {instance.state}{reason}{end}")
    return {
        "instance": instance.instance_id,
        "addresses": {str(port): list(address) for port, address in instance.addresses.items()},
    }


def launch_spec(run_id: str, args: Mapping[str, Any]) -> InstanceSpec:
    """What a launch step's args ask the site for."""
    return InstanceSpec(
        instance_id=args["instance_id"],
        run_id=run_id,
        server_id=args["server_id"],
        server_name=args["server"],
        points=[(VolumeKey(args["server_id"], index), args["point"]) for index in range(args["volumes"])],
        machine_id=args["machine_id"],
        cpus=args["cpus"],
        memory_mib=args["memory_mib"],
        network=NetworkMode(args["network"]),
        ports={int(guest): site for guest, site in args["ports"].items()},
        uefi=args["uefi"],
    )


def gate(context: StepContext) -> dict[str, Any]:
    """The time limit starts anew when the step is resumed: while the service was away, nobody looked."""
    wanted = gate_from_json(context.args["gate"])
    context.say(f"{wanted}, for up to {wanted.timeout_seconds:g} s")
    seen = ""

    def held() -> bool | None:
        nonlocal seen
        result = check_gate(wanted, context.site, context.instance_id)
        seen = result.seen
        return True if result.held else None

    if context.poll(held, wanted.timeout_seconds) is None:
        end = console_end(context.site, context.instance_id)
        raise GateFailed(
            f"{context.server}: {wanted} did not come within {wanted.timeout_seconds:g} s; last seen: {seen}{end}"
        )
    return {"seen": seen}


def take_point(context: StepContext) -> dict[str, Any]:
    """A point made by the instance's own agent shortens the outage: less is left to copy after the shutdown. It is
    not needed for it, so without an answer the newest point there is will do."""
    control = context.control
    control.request_point(context.server_id, context.args["label"], context.request_id)
    context.say(f"{context.server}'s agent takes a point while it runs")
    started = context.clock.monotonic()

    def answer() -> tuple[str | None, str] | None:
        state = control.request_state(context.request_id)
        if state.point is not None:
            return state.point, ""
        if state.error is not None:
            return None, f"its agent could not take one: {state.error}"
        silent_seconds: float = context.args["silent_seconds"]
        if context.clock.monotonic() - started < silent_seconds:
            return None
        seen = control.server(context.run.tenant, context.server).last_seen_seconds
        if seen is None or seen > silent_seconds:
            return None, f"its agent has not answered for {silent_seconds:g} s"
        return None

    limit_seconds: float = context.args["limit_seconds"]
    late = (None, f"its agent took longer than {limit_seconds:g} s")
    point, reason = context.poll(answer, limit_seconds) or late
    if point is not None:
        return {"point": point}
    points = control.points(context.server_id)
    if not points:
        raise NotFound(f"there is no recovery point of {context.server}", "see: understudy points")
    return {"point": points[0].id, "note": f"no new point: {reason}; going on with the newest, {points[0].id}"}


def await_pull(context: StepContext) -> dict[str, Any]:
    """No time limit: somebody repairs a machine meanwhile."""
    point_id = _point_before(context.run.steps[: context.position])
    point = next((point for point in context.control.points(context.server_id) if point.id == point_id), None)
    if point is None:
        raise NotFound(f"point {point_id} of {context.server} is gone", "call this failback off and begin a new one")
    wanted = set(range(len(point.volumes)))

    def pulled() -> bool | None:
        missing = wanted - context.control.pulled_volumes(point_id)
        context.say(_pull_commands(point_id, sorted(missing)) if missing else None)
        return None if missing else True

    context.poll(pulled)
    return {"point": point_id, "volumes": len(wanted)}


def _point_before(steps: Sequence[Step]) -> str:
    return next(str(step.result["point"]) for step in reversed(steps) if step.action in ("take_point", "capture"))


def _pull_commands(point_id: str, volumes: Sequence[int]) -> str:
    commands = [f"understudy-agent pull {point_id} --volume {index} --onto DISK --yes" for index in volumes]
    return "\n".join(["on the repaired machine, run:", *commands])


def shut_down(context: StepContext) -> dict[str, Any]:
    """Ask until it has: a guest that is still booting, or busy, may not hear the first time."""
    context.say(f"{context.server}'s instance shuts down")
    asked_at: float | None = None

    def stopped() -> Instance | None:
        nonlocal asked_at
        instance = context.site.watch(context.instance_id)
        if instance.state in (InstanceState.STOPPED, InstanceState.GONE):
            return instance
        if asked_at is None or context.clock.monotonic() - asked_at >= STOP_REPEAT_SECONDS:
            asked_at = context.clock.monotonic()
            context.site.stop(context.instance_id)
        return None

    limit_seconds: float = context.args["limit_seconds"]
    instance = context.poll(stopped, limit_seconds)
    if instance is None:
        raise RecoveryError(
            f"{context.server} (instance {context.instance_id}) did not shut down within {limit_seconds:g} s",
            "nothing is lost and it still runs; shut it down from inside, then retry",
        )
    if instance.state is InstanceState.GONE:
        raise Conflict(
            f"instance {context.instance_id} of {context.server} is gone, so it cannot be brought home",
            f"its newest point is: understudy points {context.server}",
        )
    return {}


def capture(context: StepContext) -> dict[str, Any]:
    label = context.args["label"]
    point = context.control.capture(context.server_id, context.instance_id, label, context.request_id)
    return {"point": point}


def hand_home(context: StepContext) -> dict[str, Any]:
    return {"epoch": context.control.hand_home(context.server_id, context.machine_id, context.run.id)}


def await_home(context: StepContext) -> dict[str, Any]:
    """No time limit: somebody walks to a machine meanwhile."""
    context.say(f"start the repaired machine now: {context.server} boots from the disk just written")
    context.poll(lambda: context.control.home_arrived(context.server_id, context.run.id) or None)
    return {}


def settle(context: StepContext) -> dict[str, Any]:
    context.control.settle(context.server_id, context.run.id)
    return {}


def retire(context: StepContext) -> dict[str, Any]:
    context.site.end(context.instance_id)
    return {}


ACTIONS: dict[str, Action] = {
    "hand_to_instance": hand_to_instance,
    "launch": launch,
    "gate": gate,
    "take_point": take_point,
    "await_pull": await_pull,
    "shut_down": shut_down,
    "capture": capture,
    "hand_home": hand_home,
    "await_home": await_home,
    "settle": settle,
    "retire": retire,
}
