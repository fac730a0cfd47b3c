"""`understudy audit`: who did what, and why a cap was exceeded."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from service.cli.client import Service
from service.cli.output import emit
from service.cli.text import at_least_one, shown, table


def audit(options: argparse.Namespace) -> None:
    entries = Service.of(options).get("/api/v1/audit", most=options.most)
    rows = [[shown(entry["at"]), entry["who"], entry["action"], entry["detail"]] for entry in entries]
    emit(options, entries, table(["AT", "WHO", "WHAT", "DETAIL"], rows, "nothing was done yet"))


def register(add: Callable[..., argparse.ArgumentParser]) -> None:
    """`add` makes a command that takes the options which all have."""
    made = add("audit", audit, "who did what, newest first", "audit", "audit --most 1000 --json")
    made.add_argument("--most", metavar="N", type=at_least_one, default=100, help="how many (default: 100)")
