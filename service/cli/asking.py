"""What several commands ask for alike: which target, and whether it is really meant."""

from __future__ import annotations

import argparse
import sys

from agent.protocol.errors import UsageError
from service.cli.output import say


def asks_first(made: argparse.ArgumentParser) -> None:
    """It goes on only when its question was answered, or with --yes; without a terminal that is wrong usage."""
    made.add_argument("--yes", action="store_true", help="do not ask")
    made.set_defaults(confirms=True)


def takes_target(made: argparse.ArgumentParser) -> None:
    """The command begins a run of a plan or a server."""
    made.add_argument("target", metavar="PLAN|SERVER")
    made.add_argument(
        "--point",
        metavar="ID|latest|TIME",
        help="else as the plan says; also latest-application, latest-bootable",
    )
    made.add_argument(
        "--without",
        metavar="NAME",
        action="append",
        default=[],
        help="leave this server of the plan out; may be repeated",
    )
    made.add_argument("--dry-run", action="store_true", help="print the steps and do nothing")
    made.add_argument("--over-cap", metavar="REASON", help="although it exceeds a cap; the reason is written down")


def confirm(name: str, what: str) -> None:
    """Typed, not clicked. Raises UsageError."""
    if not sys.stdin.isatty():
        raise UsageError(f"nobody is here to confirm that {name} {what}", "say --yes")
    say(f"{name} {what}.\nType {name} to go on: ", sys.stderr, end="")
    try:
        typed = sys.stdin.readline().strip()
    except KeyboardInterrupt:
        typed = ""
    if typed != name:
        raise UsageError("not confirmed, nothing was done", f"type {name}, or say --yes")
