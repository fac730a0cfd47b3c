"""What the steps about a source do: stopped by its own agent, drained, fenced off, retired."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from agent.protocol.errors import RecoveryError
from recovery.actions.context import StepContext
from recovery.control import CommandState
from recovery.readiness import devices_of
from recovery.runs import Run, StepState

SILENT_SECONDS = 90.0
"""An agent that lives asks at least every 30 s."""
FENCE_SECONDS = 120.0
LAST_POINT_SECONDS = 1800.0


def fence_source(context: StepContext) -> dict[str, Any]:
    """The source's own agent stops what the server does for others. Nobody has declared it dead, so without its word
    nothing goes on."""
    server = context.control.server(context.run.tenant, context.server)
    if server.last_seen_seconds is None or server.last_seen_seconds > SILENT_SECONDS:
        heard = "never" if server.last_seen_seconds is None else f"{server.last_seen_seconds:.0f} s ago"
        raise RecoveryError(f"{context.server} cannot be stopped: its agent was last heard {heard}", _way_out(context))
    state = _answer(context, "fence", FENCE_SECONDS, lambda key: context.control.request_fence(context.server_id, key))
    if state.error is not None:
        raise RecoveryError(f"{context.server} could not be stopped by its agent: {state.error}", _way_out(context))
    return {"note": f"its agent stopped it: {state.output}".rstrip(": ")}


def last_point(context: StepContext) -> dict[str, Any]:
    """After the server has stopped nothing is lost between this point and the takeover."""
    label = f"{context.run.id}: last"
    state = _answer(
        context, "point", LAST_POINT_SECONDS, lambda key: context.control.request_point(context.server_id, label, key)
    )
    if state.point is None:
        raise RecoveryError(f"{context.server} made no last point: {state.error}", _way_out(context))
    taken = next((point for point in context.control.points(context.server_id) if point.id == state.point), None)
    return {"point": state.point, "taken_at": taken.taken_at if taken else context.run.created_at}


def hand_to_instance(context: StepContext) -> dict[str, Any]:
    epoch = context.control.hand_to_instance(
        context.server_id, context.machine_id, context.run.id, context.args.get("epoch")
    )
    return {"epoch": epoch}


def retire_source(context: StepContext) -> dict[str, Any]:
    context.control.retire_source(context.server_id, context.machine_id, context.run.id)
    return {}


def found_out(run: Run, args: Mapping[str, Any]) -> dict[str, Any]:
    """A launch step's args, with the point that the source made last in the place of the planned one, and the devices
    that boot repair found it to need."""
    args = {**args, "devices": devices_of(run, args)}
    for step in run.steps:
        made = step.action == "last_point" and step.state is StepState.DONE and "point" in step.result
        if made and step.args["server_id"] == args["server_id"]:
            return {**args, **{name: step.result[name] for name in ("point", "taken_at")}}
    return args


def _answer(context: StepContext, what: str, limit_seconds: float, ask: Callable[[str], None]) -> CommandState:
    """Ask the agent, and wait for its word. An operator's retry asks anew; a service that was killed does not."""
    key = f"{context.request_id}.{what}.{context.step.started_at or 0:.3f}.{context.attempt}"
    ask(key)
    context.say(f"{context.server}'s agent is asked ({what}), for up to {limit_seconds:g} s")

    def done() -> CommandState | None:
        state = context.control.request_state(key)
        return state if (state.point, state.output, state.error) != (None, None, None) else None

    late = CommandState(error=f"its agent did not answer within {limit_seconds:g} s")
    return context.poll(done, limit_seconds) or late


def _way_out(context: StepContext) -> str:
    again = f"understudy retry {context.run.id}"
    return f"if it is dead, say so: {again} --declare-dead {context.server}; else see to its agent, then: {again}"
