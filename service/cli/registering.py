"""How commands come to have their parsers: a help that ends with examples, and the options that all take."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

Run = Callable[[argparse.Namespace], None]


def with_examples(*examples: str) -> dict[str, Any]:
    """How a parser comes to have a help that ends with examples."""
    epilog = "examples:\n" + "\n".join(f"  understudy {example}" for example in examples)
    return {"epilog": epilog, "formatter_class": argparse.RawDescriptionHelpFormatter}


class Commands:
    """Adds commands that all take the options which say where the service is."""

    def __init__(self, parser: argparse.ArgumentParser, shared: argparse.ArgumentParser) -> None:
        self._subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
        self.shared = shared

    def add(self, name: str, run: Run | None, text: str, *examples: str) -> argparse.ArgumentParser:
        made = self._subparsers.add_parser(
            name,
            parents=[self.shared],
            help=text,
            description=text,
            **with_examples(*examples),
        )
        if run is not None:
            made.set_defaults(run=run)
        return made
