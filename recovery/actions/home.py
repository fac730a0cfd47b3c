"""What the steps of a failback do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agent.protocol.errors import Conflict, NotFound, RecoveryError
from recovery.actions.boot import repair_job
from recovery.actions.context import StepContext, giving_way
from recovery.homeward import point_to_copy
from recovery.sites.contract import Instance, InstanceState

STOP_REPEAT_SECONDS = 10.0


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
    point_id = point_to_copy(context.run.steps[: context.position])
    point = next((point for point in context.control.points(context.server_id) if point.id == point_id), None)
    if point is None:
        raise NotFound(f"point {point_id} of {context.server} is gone", "call this failback off and begin a new one")
    wanted = set(range(len(point.volumes)))

    def pulled() -> bool | None:
        missing = wanted - context.control.pulled_volumes(point_id)
        context.say(_pull_commands(point_id, sorted(missing)) if missing else None)
        return None if missing else True

    context.poll(pulled)
    return {
        "point": point_id,
        "volumes": len(wanted),
        "received_bytes": context.control.pulled_bytes(point_id),
    }


def await_cut_over(context: StepContext) -> dict[str, Any]:
    """No time limit: an operator chooses the hour. A confirmation interrupts this, and the run is read anew."""
    context.say(f"{context.server} is copied and goes on working; to cut over: understudy commit {context.run.id}")
    context.poll(lambda: True if context.run.committed_at is not None else None)
    return {}


def _pull_commands(point_id: str, volumes: Sequence[int]) -> str:
    commands = [f"understudy-agent pull {point_id} --volume {index} --onto DISK --yes" for index in volumes]
    return "\n".join(["on the repaired machine (the rescue image does it of its own accord), run:", *commands])


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


def undo_repair(context: StepContext) -> dict[str, Any]:
    """On the instance's own volumes, before its last point is taken: home gets its own names and drivers back. What
    cannot be taken back serves at home too, so the way home goes on, and says so."""
    if context.repairer is None:
        return {"note": "not undone: this service has no boot repair now"}
    job = repair_job(context.site, context.args["repaired_by"], context.args["launch"], context.interrupt)
    context.say(f"what boot repair changed on {context.server} is taken back")
    try:
        with giving_way(context.interrupt):
            return context.repairer.undo(job)
    except RecoveryError as error:
        return {"note": f"not undone: {error}"}


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


def await_forward(context: StepContext) -> dict[str, Any]:
    """Only a point proves that home is protected again. No time limit: the instance is kept meanwhile."""
    server = context.control.server(context.run.tenant, context.server)
    context.say(f"{context.server}'s agent at home makes its first point")

    def made() -> dict[str, Any] | None:
        newest = next(iter(context.control.points(context.server_id)), None)
        return {"point": newest.id} if newest is not None and newest.epoch >= server.epoch else None

    return context.poll(made) or {}


def settle(context: StepContext) -> dict[str, Any]:
    context.control.settle(context.server_id, context.run.id)
    return {}


def retire(context: StepContext) -> dict[str, Any]:
    context.site.end(context.instance_id)
    return {}
