"""A run as an operator sees it: planned, followed while it goes on, and how it ended."""

from __future__ import annotations

import argparse
from typing import Any

from agent.protocol.errors import RecoveryError
from service.cli.client import Service
from service.cli.output import emit
from service.cli.plans import findings_lines, price_text
from service.cli.text import duration, instant, size

FOLLOW_SECONDS = 25
_FINAL = ("succeeded", "failed", "ended")


def follow(options: argparse.Namespace, service: Service, run: dict[str, Any]) -> dict[str, Any]:
    """Print what happens as it happens, until the run is at rest."""
    printer = _StepPrinter(quiet=options.json)
    printer.show(run)
    while run["state"] not in _FINAL:
        run = _next(service, run)
        printer.show(run)
    return run


def until_ended(service: Service, run: dict[str, Any]) -> dict[str, Any]:
    while run["state"] != "ended":
        run = _next(service, run)
    return run


def _next(service: Service, run: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = service.get(
        f"/api/v1/runs/{run['id']}", after_version=run["version"], wait_seconds=FOLLOW_SECONDS
    )
    return found


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
                self._once(position, step["waits_for"], _indented(step["waits_for"]))
            if step["state"] == "done":
                self._once(position, "done", f"{number} {step['name']}: done, {duration(step['seconds'])}")
                if step["result"].get("note"):
                    self._once(position, "note", _indented(step["result"]["note"]))
            if step["state"] == "failed":
                self._once(position, "failed", f"{number} {step['name']}: FAILED, {duration(step['seconds'])}")
                self._once(position, "error", _indented(step["error"] or ""))

    def _once(self, position: int, what: str, text: str) -> None:
        if (position, what) not in self._said:
            self._said.add((position, what))
            print(text, flush=True)


def finish(options: argparse.Namespace, run: dict[str, Any]) -> None:
    """Print the outcome. Raises RecoveryError unless every gate held."""
    if run["state"] == "succeeded":
        lines = [f"{run['id']} succeeded" + (f", RTO {run['rto_seconds']:.1f} s" if run["rto_seconds"] else "")]
        for instance in run["instances"]:
            for guest_port, address in instance["addresses"].items():
                lines.append(f"  {instance['server']} port {guest_port} is at {address}")
        if run["price"]:
            lines.append(f"  it uses {price_text(run['price'])}")
        if run["kind"] == "drill":
            lines.append(f"the evidence, signed: understudy evidence {run['id']}")
            lines.append(
                f"when you have seen enough: understudy end {run['id']} (by itself at {instant(run['expires_at'])})"
            )
        if run["kind"] == "clone":
            lines.append(f"when you need them no more: understudy end {run['id']}")
        if run["kind"] == "failover":
            lines.append(f"the way home: understudy failback {run['id']}")
            if run["rollback_until"]:
                undone = f"it can be undone: understudy rollback {run['id']}"
                lines.append(f"until {instant(run['rollback_until'])} {undone}")
        if run["kind"] == "failback":
            lines.append(f"  {size(run['received_bytes'])} came home over the wire")
        emit(options, run, "\n".join(lines))
        return
    if options.json:
        emit(options, run, "")
    failed = next((step for step in run["steps"] if step["state"] == "failed"), None)
    if failed is None:
        raise RecoveryError(f"{run['id']} is {run['state']}")
    reason = (failed["error"] or "").splitlines()[0]
    raise RecoveryError(
        f"{run['id']} failed at '{failed['name']}': {reason}",
        f"retry: understudy retry {run['id']}; remove what it made: understudy end {run['id']}",
    )


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


def _indented(text: str) -> str:
    return "\n".join(f"      {line}" for line in text.splitlines())
