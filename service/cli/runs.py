"""The button, its dry run, the way home, the end: commands that begin a run and follow it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from agent.protocol.errors import Conflict
from service.cli.asking import asks_first, confirm, takes_target
from service.cli.client import Service, api
from service.cli.following import FINAL, changed_since, finish, follow, planned_text, until_ended
from service.cli.output import emit, say
from service.cli.showing import now_text, servers_lines, stale_text, steps_text, ways_on
from service.cli.sources import declared_dead, what_becomes_of_them
from service.cli.text import duration, instant, length_of_time, table

Planned = dict[str, Any]
Question = Callable[[Service, Planned], tuple[str, str]]
"""What has to be confirmed: a name, and what becomes of it."""


def list_runs(options: argparse.Namespace) -> None:
    """All, or one with its steps."""
    service = Service.of(options)
    if options.run_id is not None:
        _show(options, service, service.get(api("runs", options.run_id)))
        return
    runs = service.get("/api/v1/runs", most=options.most)
    rows = [
        [
            run["id"],
            run["plan"],
            run["state"],
            instant(run["created_at"]),
            duration(run["rto_seconds"]),
            now_text(run) or None,
        ]
        for run in runs
    ]
    emit(options, runs, table(["RUN", "PLAN", "STATE", "BEGAN", "RTO", "NOW"], rows, "no runs yet"))


def misused_listing(options: argparse.Namespace) -> str | None:
    """What is wrong with the words given, which no parser sees; None if nothing is."""
    return "follow which? runs RUN --follow" if options.follow and options.run_id is None else None


def _show(options: argparse.Namespace, service: Service, run: Planned) -> None:
    if options.follow and run["state"] not in FINAL:
        finish(options, follow(options, service, run))
        return
    began = f"{run['id']}: {run['kind']} of {run['plan']}, {run['state']}; began {instant(run['created_at'])}"
    stale = [
        line
        for server in service.get("/api/v1/servers")
        if server["failover_run"] == run["id"] and (line := stale_text(server))
    ]
    emit(options, run, "\n".join([began, steps_text(run), *servers_lines(run), *stale, *ways_on(run)]))


def panic(options: argparse.Namespace) -> None:
    wanted = {
        "kind": "drill" if options.drill else "failover",
        "target": options.target,
        "point": options.point,
        "over_cap": options.over_cap,
        "declare_dead": declared_dead(options),
        "without": options.without,
        **({} if options.ttl is None else {"ttl_seconds": options.ttl}),
    }

    def question(service: Service, planned: Planned) -> tuple[str, str]:
        return options.target, f"takes over: {what_becomes_of_them(service, planned)}"

    begin(options, wanted, None if options.drill else question)


def _misused(options: argparse.Namespace) -> str | None:
    """What is wrong with the words given, which no parser sees; None if nothing is."""
    if options.ttl is not None and not options.drill:
        return "--ttl is for drills: say --drill, too"
    if options.drill and (options.fence or options.declare_dead):
        return "a drill leaves the sources alone: leave --fence and --declare-dead out"
    return None


def failback(options: argparse.Namespace) -> None:
    wanted = {
        "kind": "failback",
        "run": options.run_id,
        "server": options.server,
        "grace_seconds": int(options.grace),
        "hold": options.hold,
    }

    def question(_: Service, planned: Planned) -> tuple[str, str]:
        name = planned["steps"][0]["server"]
        when = " once you confirm it (understudy commit)" if options.hold else ""
        return name, (
            f"goes home: the disk at home is overwritten, its instance is shut down for the last changes{when}, and"
            f" the instance and its disks are removed once {name} has been seen at home"
        )

    begin(options, wanted, question)


def begin(options: argparse.Namespace, wanted: dict[str, Any], question: Question | None) -> None:
    """Show what it would do; unless that was all that was asked for, do it, and follow it to its end."""
    service = Service.of(options)
    planned = service.post("/api/v1/runs", {**wanted, "dry_run": True})
    if options.dry_run:
        emit(options, planned, planned_text(planned))
        return
    if not options.json:
        say(planned_text(planned))
    if question is not None and not options.yes:
        confirm(*question(service, planned))
    run = service.post("/api/v1/runs", {**wanted, "seed": planned["seed"]})
    if not options.json:
        for line in changed_since(planned, run):
            say(line)
    finish(options, follow(options, service, run))


def retry(options: argparse.Namespace) -> None:
    service = Service.of(options)
    wanted = {"go_on": options.go_on, "declare_dead": options.declare_dead}
    run = service.post(api("runs", options.run_id, "retry"), wanted)
    finish(options, follow(options, service, run))


def end(options: argparse.Namespace) -> None:
    """What would lose something says so, and wants to be told again: by the run's name typed, or --yes."""
    service = Service.of(options)
    path = api("runs", options.run_id, "end")
    try:
        run = service.post(path, {"force": options.yes})
    except Conflict as error:
        if "--force" not in error.hint or options.json or not sys.stdin.isatty():
            raise
        planned = service.get(api("runs", options.run_id))
        confirm(planned["plan"], f"loses this: {error.message}")
        run = service.post(path, {"force": True})
    run = until_ended(options, service, run)
    emit(options, run, f"{run['id']} has ended; what it made has been removed")


def register(add: Callable[..., argparse.ArgumentParser]) -> None:
    """`add` makes a command that takes the options which all have."""
    made = add(
        "panic",
        panic,
        "the button: boot the newest point in the place of a lost server",
        "panic web01 --dry-run",
        "panic web01 --drill",
        "panic web01 --yes",
        "panic web01 --point 2026-01-31T14:30:00Z",
    )
    takes_target(made)
    made.add_argument("--drill", action="store_true", help="in an isolated network; the source goes on")
    made.add_argument(
        "--ttl", metavar="TIME", type=length_of_time, help="after how long a drill is ended by itself (default: 2h)"
    )
    made.add_argument(
        "--declare-dead",
        metavar="NAME",
        action="append",
        default=[],
        help="this server's source is dead; may be repeated, and those not named are stopped by their agents first",
    )
    made.add_argument("--fence", action="store_true", help="declare nothing dead: the sources' agents stop them first")
    asks_first(made)
    made.set_defaults(misused=_misused)

    made = add(
        "failback",
        failback,
        "the way home of a failed-over server",
        "failback failover-1a2b3c4d --dry-run",
        "failback failover-1a2b3c4d --hold --grace 2h",
    )
    made.add_argument("run_id", metavar="RUN")
    made.add_argument("--server", metavar="NAME", help="which, when the run booted several")
    made.add_argument(
        "--grace",
        metavar="TIME",
        type=length_of_time,
        default=0.0,
        help="keep the instance for so long afterwards, like 2h",
    )
    made.add_argument("--hold", action="store_true", help="copy, and shut down only after: understudy commit RUN")
    made.add_argument("--dry-run", action="store_true", help="print the steps and do nothing")
    asks_first(made)

    made = add("end", end, "end a run and remove all it made", "end drill-1a2b3c4d")
    made.add_argument("run_id", metavar="RUN")
    made.add_argument("--yes", "--force", dest="yes", action="store_true", help="even if something is lost: do not ask")

    made = add(
        "retry",
        retry,
        "go on with a failed run: try again what failed, or go on behind it",
        "retry failover-1a2b3c4d",
        "retry failover-1a2b3c4d --go-on",
        "retry failover-1a2b3c4d --declare-dead web01",
    )
    made.add_argument("run_id", metavar="RUN")
    made.add_argument("--go-on", action="store_true", help="pass over what failed; the run stays failed at its end")
    made.add_argument(
        "--declare-dead",
        metavar="NAME",
        action="append",
        default=[],
        help="this server's source could not be stopped, and is dead: go on without its word",
    )
