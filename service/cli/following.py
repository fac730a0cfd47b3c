"""A run as an operator sees it: planned, followed while it goes on, and how it ended."""

from __future__ import annotations

import argparse
import time
from typing import Any

from agent.protocol.errors import RecoveryError, TransportError
from service.cli.client import Service, api
from service.cli.output import emit, say, show_note
from service.cli.plans import findings_lines, price_text
from service.cli.showing import failed_step, indented, servers_lines, ways_on
from service.cli.text import duration, size

FOLLOW_SECONDS = 25
PATIENCE_SECONDS = 60.0
"""How long a service may not answer."""
FINAL = ("succeeded", "failed", "ended")


def follow(options: argparse.Namespace, service: Service, run: dict[str, Any]) -> dict[str, Any]:
    """Print what happens as it happens, until the run is at rest."""
    printer = _StepPrinter(quiet=options.json)
    printer.show(run)
    while run["state"] not in FINAL:
        run = _next(options, service, run)
        printer.show(run)
    return run


def until_ended(options: argparse.Namespace, service: Service, run: dict[str, Any]) -> dict[str, Any]:
    """Raises RecoveryError (a failback that cannot be called off)."""
    while run["state"] != "ended":
        if run["not_called_off"]:
            raise RecoveryError(f"{run['id']} cannot be called off: {run['not_called_off']}", "; ".join(ways_on(run)))
        run = _next(options, service, run)
    return run


def _next(options: argparse.Namespace, service: Service, run: dict[str, Any]) -> dict[str, Any]:
    """The run as it is after its next change. A service that is started again, or a line that is down for a moment, is
    waited for. Raises TransportError."""
    gives_up_at = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            found = service.get(api("runs", run["id"]), after_version=run["version"], wait_seconds=FOLLOW_SECONDS)
        except TransportError as error:
            if time.monotonic() >= gives_up_at:
                hint = f"the run goes on there; once it answers: understudy runs {run['id']} --follow"
                raise TransportError(error.message, hint) from None
            show_note(options, f"{run['id']} goes on, and is asked for again: {error.message}")
            time.sleep(1.0)
        else:
            show_note(options, "")
            return dict(found)


class _StepPrinter:
    """Says each thing once: a step's beginning, what it waits for, its end."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._said: set[tuple[int, str]] = set()

    def show(self, run: dict[str, Any]) -> None:
        if self._quiet:
            return
        self._once(-1, "run", f"run {run['id']}")
        steps = run["steps"]
        for position, step in enumerate(steps):
            number = f"[{position + 1}/{len(steps)}]"
            if step["state"] == "running":
                if step["stage"]:
                    self._once(-1, step["stage"], f"-- {step['stage']} --")
                self._once(position, "running", f"{number} {step['name']} ...")
            if step["waits_for"]:
                self._once(position, step["waits_for"], indented(step["waits_for"]))
            if step["state"] == "done":
                self._once(position, "done", f"{number} {step['name']}: done, {duration(step['seconds'])}")
                if step["result"].get("note"):
                    self._once(position, "note", indented(step["result"]["note"]))
            if step["state"] == "failed":
                self._once(position, "failed", f"{number} {step['name']}: FAILED, {duration(step['seconds'])}")
                self._once(position, "error", indented(step["error"] or ""))

    def _once(self, position: int, what: str, text: str) -> None:
        if (position, what) not in self._said:
            self._said.add((position, what))
            say(text)


def changed_since(planned: dict[str, Any], run: dict[str, Any]) -> list[str]:
    """How what is done differs from what was shown: points come and go meanwhile, and a way home may have begun."""
    if run["id"] != planned["id"]:
        return [f"{run['id']} was begun before, and goes on"]
    said = [step["description"] for step in planned["steps"]]
    now = [step["description"] for step in run["steps"]]
    if len(said) != len(now):
        return ["it has changed since it was shown:", *(f"  {number}. {line}" for number, line in enumerate(now, 1))]
    return [
        f"changed since it was shown: {number}. {line}"
        for number, (line, before) in enumerate(zip(now, said, strict=True), 1)
        if line != before
    ]


def finish(options: argparse.Namespace, run: dict[str, Any]) -> None:
    """Print the outcome. Raises RecoveryError unless every gate held, or it was called off as it should be."""
    lines = servers_lines(run)
    if run["state"] == "ended" and run["kind"] == "failback":
        emit(options, run, "\n".join([f"{run['id']} was called off, and has ended", *lines]))
        return
    if run["state"] == "succeeded":
        took = "the server was away for" if run["kind"] == "failback" else "RTO"
        seconds = f", {took} {duration(run['rto_seconds'])}" if run["rto_seconds"] is not None else ""
        lines = [f"{run['id']} succeeded{seconds}", *lines]
        lines += [f"  warning, though every gate held: {words}" for words in run["warnings"]]
        if run["price"]:
            lines.append(f"  it uses {price_text(run['price'])}")
        if run["kind"] == "failback":
            lines.append(f"  {size(run['received_bytes'])} came home over the wire")
        emit(options, run, "\n".join([*lines, *ways_on(run)]))
        return
    emit(options, run, "\n".join(lines))
    failed = failed_step(run)
    if failed is None:
        raise RecoveryError(f"{run['id']} is {run['state']}")
    reason = next(iter((failed["error"] or "").splitlines()), "")
    raise RecoveryError(f"{run['id']} failed at '{failed['name']}': {reason}", "; ".join(ways_on(run)))


def planned_text(run: dict[str, Any]) -> str:
    """What it would do, and, of a run that boots something, what speaks against it and what it uses."""
    lines = [f"  {number}. {step['description']}{_order(number, step)}" for number, step in enumerate(run["steps"], 1)]
    lines += findings_lines(run.get("findings", []))
    if run["price"]:
        lines.append(f"it uses {price_text(run['price'])}")
    return "\n".join(lines)


def _order(number: int, step: dict[str, Any]) -> str:
    """Told where it is not simply the step before."""
    if step["closing"]:
        return " [at the end]"
    after = step["after"]
    if after == [number - 2] or (not after and number == 1):
        return ""
    if not after:
        return " [at once]"
    shown = ", ".join(str(position + 1) for position in after[:6])
    return f" [after {shown}{', ...' if len(after) > 6 else ''}]"
