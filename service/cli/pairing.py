"""Pairing: a machine that was started from the rescue image becomes a server's repair target."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from service.cli.client import Service
from service.cli.output import emit


def pair(options: argparse.Namespace) -> None:
    paired = Service.of(options).post(
        "/api/v1/pairings",
        {"code": options.code, "server": options.server, "tenant": options.tenant or "default"},
    )
    text = f"paired, as repair target of {paired['server']}: {paired['machine']}\nits screen says how it goes on"
    emit(options, paired, text)


def register(add: Callable[..., argparse.ArgumentParser]) -> None:
    """`add` makes a command that takes the options which all have."""
    made = add(
        "pair",
        pair,
        "take a machine that shows a pairing code (the rescue image does) as a server's repair target",
        "pair K7MX-4QRT --server web01",
    )
    made.add_argument("code", metavar="CODE", help="as its screen shows it")
    made.add_argument("--server", metavar="NAME", required=True, help="which server it is to become")
