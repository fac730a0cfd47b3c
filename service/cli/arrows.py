"""The other arrows: a failover made final or undone, copies for test and development, a server that moves for good."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from service.cli.asking import asks_first, confirm, takes_target
from service.cli.client import Service, api
from service.cli.following import until_ended
from service.cli.output import emit
from service.cli.runs import begin
from service.cli.sources import what_is_lost
from service.cli.text import at_least_one


def commit(options: argparse.Namespace) -> None:
    """Of a failover, or of a failback that holds."""

    def what(run: dict[str, Any]) -> str:
        if run["kind"] == "failback":
            return "is shut down at the recovery site, as soon as what changed there lately is at home"
        return "stays at the recovery site: from then on its failover cannot be rolled back"

    run = _asked(options, what, "commit")
    done = f"is committed; the way home is still: understudy failback {run['id']}"
    if run["kind"] == "failback":
        done = f"cuts over now; to follow it: understudy runs {run['id']} --follow"
    emit(options, run, f"{run['id']} {done}")


def rollback(options: argparse.Namespace) -> None:
    service = Service.of(options)

    def what(run: dict[str, Any]) -> str:
        lost = what_is_lost(service, run)
        return f"goes back to its source as that is: the instances are removed, and {lost} is lost; the points stay"

    run = until_ended(options, service, _asked(options, what, "rollback"))
    emit(options, run, f"{run['id']} was rolled back: the source is the server again, and is told so when it asks next")


def clone(options: argparse.Namespace) -> None:
    asked = {"kind": "clone", "copies": options.copies, "host_names": options.host_name}
    begin(options, _wanted(options) | asked, None)


def migrate(options: argparse.Namespace) -> None:
    what = "moves to the recovery site for good: its source is stopped, and told to stand down for ever"
    wanted = _wanted(options) | {"kind": "migrate", "declare_dead": options.declare_dead}
    begin(options, wanted, lambda *_: (options.target, what))


def _asked(options: argparse.Namespace, what: Callable[[dict[str, Any]], str], verb: str) -> Any:
    """The run after this was asked of it; without --yes what becomes of it has to be confirmed."""
    service = Service.of(options)
    if not options.yes:
        run = service.get(api("runs", options.run_id))
        confirm(run["plan"], what(run))
    return service.post(api("runs", options.run_id, verb))


def _wanted(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "target": options.target,
        "point": options.point,
        "over_cap": options.over_cap,
        "without": options.without,
    }


def register(add: Callable[..., argparse.ArgumentParser]) -> None:
    """`add` makes a command that takes the options which all have."""
    made = add(
        "commit",
        commit,
        "make a failover final: no rollback from then on; or let a failback that holds cut over",
        "commit failover-1a2b3c4d",
        "commit failback-5e6f7a8b",
    )
    made.add_argument("run_id", metavar="RUN")
    asks_first(made)

    made = add(
        "rollback",
        rollback,
        "undo a failover within a day: its source is the server again",
        "rollback failover-1a2b3c4d",
    )
    made.add_argument("run_id", metavar="RUN")
    asks_first(made)

    made = add(
        "clone",
        clone,
        "copies of a point in an isolated network, with identities and names of their own",
        "clone web01 --copies 3",
        "clone web01 --copies 3 --host-name 'test-{copy}'",
        "clone shop --point latest-bootable --dry-run",
    )
    made.add_argument("--copies", metavar="N", type=at_least_one, default=1)
    made.add_argument(
        "--host-name", metavar="PATTERN", help="what they call themselves (default: {server}-clone-{copy})"
    )
    takes_target(made)

    made = add(
        "migrate",
        migrate,
        "a failover without a way back: the server lives at the site from then on",
        "migrate web01 --dry-run",
        "migrate web01 --declare-dead web01 --yes",
    )
    made.add_argument("--declare-dead", metavar="NAME", action="append", default=[], help="its source cannot be asked")
    takes_target(made)
    asks_first(made)
