"""The button, its dry run, the way home, the end: commands that begin a run and follow it."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from agent.protocol.errors import RecoveryError, UsageError
from service.cli.client import Service
from service.cli.output import emit
from service.cli.text import duration, instant, table

FOLLOW_SECONDS = 25
_FINAL = ("succeeded", "failed", "ended")


def list_runs(options: argparse.Namespace) -> None:
    runs = Service.of(options).get("/api/v1/runs", tenant=options.tenant)
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
    }
    planned = service.post("/api/v1/runs", {**wanted, "dry_run": True}, tenant=options.tenant)
    if options.dry_run:
        emit(options, planned, _steps_text(planned))
        return
    if not options.json:
        print(_steps_text(planned), flush=True)
    if not options.drill:
        _confirm(options, options.target, "takes over: its source must be dead or shut down, and is fenced from now on")
    run = service.post("/api/v1/runs", wanted, tenant=options.tenant)
    _finish(options, _follow(options, service, run))


def failback(options: argparse.Namespace) -> None:
    service = Service.of(options)
    wanted = {"kind": "failback", "run": options.run_id, "server": options.server}
    planned = service.post("/api/v1/runs", {**wanted, "dry_run": True}, tenant=options.tenant)
    if options.dry_run:
        emit(options, planned, _steps_text(planned))
        return
    if not options.json:
        print(_steps_text(planned), flush=True)
    _confirm(options, planned["plan"], "goes home: its instance is shut down for the last changes, then removed")
    run = service.post("/api/v1/runs", wanted, tenant=options.tenant)
    _finish(options, _follow(options, service, run))


def retry(options: argparse.Namespace) -> None:
    service = Service.of(options)
    run = service.post(f"/api/v1/runs/{options.run_id}/retry")
    _finish(options, _follow(options, service, run))


def end(options: argparse.Namespace) -> None:
    service = Service.of(options)
    run = service.post(f"/api/v1/runs/{options.run_id}/end", {"force": options.force})
    while run["state"] != "ended":
        run = _next(service, run)
    emit(options, run, f"{run['id']} has ended; what it made has been removed")


def _follow(options: argparse.Namespace, service: Service, run: dict[str, Any]) -> dict[str, Any]:
    """Print what happens as it happens, until the run is at rest."""
    printer = _StepPrinter(quiet=options.json)
    printer.show(run)
    while run["state"] not in _FINAL:
        run = _next(service, run)
        printer.show(run)
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


def _finish(options: argparse.Namespace, run: dict[str, Any]) -> None:
    """Print the outcome. Raises RecoveryError unless every gate held."""
    if run["state"] == "succeeded":
        lines = [f"{run['id']} succeeded" + (f", RTO {run['rto_seconds']:.1f} s" if run["rto_seconds"] else "")]
        for instance in run["instances"]:
            for guest_port, address in instance["addresses"].items():
                lines.append(f"  {instance['server']} port {guest_port} is at {address}")
        if run["kind"] == "drill":
            lines.append(f"when you have seen enough: understudy end {run['id']}")
        if run["kind"] == "failover":
            lines.append(f"the way home: understudy failback {run['id']}")
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


def _steps_text(run: dict[str, Any]) -> str:
    return "\n".join(f"  {number}. {step['description']}" for number, step in enumerate(run["steps"], 1))


def _indented(text: str) -> str:
    return "\n".join(f"      {line}" for line in text.splitlines())


def _confirm(options: argparse.Namespace, name: str, what: str) -> None:
    """Typed, not clicked. Raises UsageError."""
    if options.yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"nobody is here to confirm that {name} {what}", "say --yes")
    sys.stderr.write(f"{name} {what}.\nType {name} to go on: ")
    sys.stderr.flush()
    if sys.stdin.readline().strip() != name:
        raise UsageError("not confirmed, nothing was done", f"type {name}, or say --yes")
