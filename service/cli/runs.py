"""The button, its dry run, the way home, the end: commands that begin a run and follow it."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from agent.protocol.errors import Conflict, RecoveryError, UsageError
from service.cli.client import Service
from service.cli.output import emit
from service.cli.plans import findings_lines, price_text
from service.cli.sources import declared_dead, still_alive
from service.cli.text import duration, instant, seconds_of, size, table

FOLLOW_SECONDS = 25
_FINAL = ("succeeded", "failed", "ended")


def list_runs(options: argparse.Namespace) -> None:
    runs = Service.of(options).get("/api/v1/runs", tenant=options.tenant, most=options.most)
    rows = [
        [run["id"], run["kind"], run["plan"], run["state"], instant(run["created_at"]), duration(run["rto_seconds"])]
        for run in runs
    ]
    emit(options, runs, table(["RUN", "KIND", "PLAN", "STATE", "BEGAN", "RTO"], rows, "no runs yet"))


def panic(options: argparse.Namespace) -> None:
    service = Service.of(options)
    wanted = {
        "kind": "drill" if options.drill else "failover",
        "target": options.target,
        "point": options.point,
        "over_cap": options.over_cap,
        "declare_dead": declared_dead(options),
        **({} if options.ttl is None else {"ttl_seconds": seconds_of(options.ttl)}),
    }
    planned = service.post("/api/v1/runs", {**wanted, "dry_run": True}, tenant=options.tenant)
    if options.dry_run:
        emit(options, planned, planned_text(planned))
        return
    if not options.json:
        print(planned_text(planned), flush=True)
    if not options.drill:
        what = "its agent stops the source" if options.fence else "you declare its source dead"
        words = "; ".join([*still_alive(options, service, planned), f"{what}, and nothing it sends is taken any more"])
        confirm(options, options.target, f"takes over: {words}")
    run = service.post("/api/v1/runs", wanted, tenant=options.tenant)
    finish(options, follow(options, service, run))


def failback(options: argparse.Namespace) -> None:
    service = Service.of(options)
    grace_seconds = int(seconds_of(options.grace)) if options.grace else 0
    wanted = {
        "kind": "failback",
        "run": options.run_id,
        "server": options.server,
        "grace_seconds": grace_seconds,
    }
    planned = service.post("/api/v1/runs", {**wanted, "dry_run": True}, tenant=options.tenant)
    if options.dry_run:
        emit(options, planned, _steps_text(planned))
        return
    if not options.json:
        print(_steps_text(planned), flush=True)
    name = planned["steps"][0]["server"]
    confirm(
        options,
        name,
        "goes home: its instance is shut down for the last changes, the disk at home is overwritten by them, and the"
        f" instance and its disks are removed once {name} has been seen at home",
    )
    run = service.post("/api/v1/runs", wanted, tenant=options.tenant)
    finish(options, follow(options, service, run))


def retry(options: argparse.Namespace) -> None:
    service = Service.of(options)
    run = service.post(f"/api/v1/runs/{options.run_id}/retry")
    finish(options, follow(options, service, run))


def end(options: argparse.Namespace) -> None:
    """What would lose something says so, and wants to be told again: by the run's name typed, or --yes."""
    service = Service.of(options)
    path = f"/api/v1/runs/{options.run_id}/end"
    try:
        run = service.post(path, {"force": options.yes}, tenant=options.tenant)
    except Conflict as error:
        if "--force" not in error.hint or options.json or not sys.stdin.isatty():
            raise
        planned = service.get(f"/api/v1/runs/{options.run_id}", tenant=options.tenant)
        confirm(options, planned["plan"], f"loses this: {error.message}")
        run = service.post(path, {"force": True}, tenant=options.tenant)
    run = until_ended(service, run)
    emit(options, run, f"{run['id']} has ended; what it made has been removed")


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
            lines.append(f"until {instant(run['rollback_until'])} it can be undone: understudy rollback {run['id']}")
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
    lines = [_steps_text(run), *findings_lines(run["findings"]), f"it uses {price_text(run['price'])}"]
    return "\n".join(lines)


def _steps_text(run: dict[str, Any]) -> str:
    return "\n".join(
        f"  {number}. {step['description']}{_order(number, step)}" for number, step in enumerate(run["steps"], 1)
    )


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


def confirm(options: argparse.Namespace, name: str, what: str) -> None:
    """Typed, not clicked. Raises UsageError."""
    if options.yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"nobody is here to confirm that {name} {what}", "say --yes")
    sys.stderr.write(f"{name} {what}.\nType {name} to go on: ")
    sys.stderr.flush()
    if sys.stdin.readline().strip() != name:
        raise UsageError("not confirmed, nothing was done", f"type {name}, or say --yes")
