"""One way to print: JSON for programs, text for people."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any


def emit(options: argparse.Namespace, document: Any, text: str) -> None:
    """With --json one document and nothing else; otherwise `text`, if there is any."""
    if options.json:
        print(json.dumps(document), flush=True)
    elif text:
        print(text, flush=True)


def show_share(options: argparse.Namespace, what: str, done: int, total: int) -> None:
    """How far something is, on a terminal, in one line that is overwritten; `done` == `total` takes it away."""
    show_note(options, "" if done >= total else f"{what}: {done / total:.0%}")


def show_note(options: argparse.Namespace, line: str) -> None:
    """What is going on, on a terminal, in one line that is overwritten; an empty one takes it away."""
    if options.json or not sys.stderr.isatty():
        return
    sys.stderr.write(f"\r{line}\033[K")
    sys.stderr.flush()
