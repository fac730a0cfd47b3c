"""The other arrows: a failover made final or undone, copies for test and development, a server that moves for good."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from service.cli.client import Service
from service.cli.output import emit
from service.cli.runs import confirm, finish, follow, planned_text, until_ended


def commit(options: argparse.Namespace) -> None:
    service = Service.of(options)
    run = service.get(f"/api/v1/runs/{options.run_id}", tenant=options.tenant)
    confirm(options, run["plan"], "stays at the recovery site: from then on its failover cannot be rolled back")
    run = service.post(f"/api/v1/runs/{options.run_id}/commit", tenant=options.tenant)
    emit(options, run, f"{run['id']} is committed; the way home is still: understudy failback {run['id']}")


def rollback(options: argparse.Namespace) -> None:
    service = Service.of(options)
    run = service.get(f"/api/v1/runs/{options.run_id}", tenant=options.tenant)
    confirm(
        options,
        run["plan"],
        "goes back to its source as that is: the instances are removed, and all they did since their newest points is"
        " lost; the points stay",
    )
    run = until_ended(service, service.post(f"/api/v1/runs/{options.run_id}/rollback", tenant=options.tenant))
    emit(options, run, f"{run['id']} was rolled back: the source is the server again, and is told so when it asks next")


def clone(options: argparse.Namespace) -> None:
    wanted = {"kind": "clone", "target": options.target, "point": options.point, "copies": options.copies}
    _begin(options, {**wanted, "over_cap": options.over_cap}, None)


def migrate(options: argparse.Namespace) -> None:
    wanted = {
        "kind": "migrate",
        "target": options.target,
        "point": options.point,
        "over_cap": options.over_cap,
        "declare_dead": options.declare_dead,
    }
    what = "moves to the recovery site for good: its source is stopped, and told to stand down for ever"
    _begin(options, wanted, what)


def _begin(options: argparse.Namespace, wanted: dict[str, Any], confirmed: str | None) -> None:
    service = Service.of(options)
    planned = service.post("/api/v1/runs", {**wanted, "dry_run": True}, tenant=options.tenant)
    if options.dry_run:
        emit(options, planned, planned_text(planned))
        return
    if not options.json:
        print(planned_text(planned), flush=True)
    if confirmed is not None:
        confirm(options, options.target, confirmed)
    finish(options, follow(options, service, service.post("/api/v1/runs", wanted, tenant=options.tenant)))


def register(add: Callable[..., argparse.ArgumentParser]) -> None:
    """`add` makes a command that takes the options which all have."""
    made = add("commit", commit, "make a failover final: no rollback from then on", "commit failover-1a2b3c4d")
    made.add_argument("run_id", metavar="RUN")
    _confirms(made)

    made = add(
        "rollback",
        rollback,
        "undo a failover within a day: its source is the server again",
        "rollback failover-1a2b3c4d",
    )
    made.add_argument("run_id", metavar="RUN")
    _confirms(made)

    made = add(
        "clone",
        clone,
        "copies of a point in an isolated network, with hardware identities of their own",
        "clone web01 --copies 3",
        "clone shop --point latest-bootable --dry-run",
    )
    made.add_argument("--copies", metavar="N", type=int, default=1)
    _target(made)

    made = add(
        "migrate",
        migrate,
        "a failover without a way back: the server lives at the site from then on",
        "migrate web01 --dry-run",
        "migrate web01 --declare-dead web01 --yes",
    )
    made.add_argument("--declare-dead", metavar="NAME", action="append", default=[], help="its source cannot be asked")
    _target(made)
    made.add_argument("--yes", action="store_true", help="do not ask")
    made.set_defaults(confirms=True)


def _target(made: argparse.ArgumentParser) -> None:
    made.add_argument("target", metavar="PLAN|SERVER")
    made.add_argument("--point", metavar="ID|latest|TIME", help="else as the plan says")
    made.add_argument("--dry-run", action="store_true", help="print the steps and do nothing")
    made.add_argument("--over-cap", metavar="REASON", help="although it exceeds a cap; the reason is written down")


def _confirms(made: argparse.ArgumentParser) -> None:
    made.add_argument("--yes", action="store_true", help="do not ask")
    made.set_defaults(confirms=True, dry_run=False)
