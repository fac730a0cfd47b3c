"""One way to print: JSON for programs, text for people."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import textwrap
from typing import Any, TextIO


def emit(options: argparse.Namespace, document: Any, text: str) -> None:
    """With --json one document and nothing else; otherwise `text`, if there is any."""
    if options.json:
        print(json.dumps(document), flush=True)
    elif text:
        say(text)


def say(text: str, stream: TextIO | None = None, end: str = "\n") -> None:
    """For people, on stdout unless another stream is named: on a terminal no line is wider than that."""
    stream, text = stream or sys.stdout, harmless(text)
    if stream.isatty():
        text = fitted(text, shutil.get_terminal_size().columns)
    print(text, file=stream, end=end, flush=True)


def harmless(text: str) -> str:
    """Without what a terminal would obey: labels, findings and answers come from servers that somebody may have taken
    over."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text)


def fitted(text: str, width: int) -> str:
    """Long lines broken between words, what follows set in: a command stays fit to be copied."""
    return "\n".join(_broken(line, width) for line in text.split("\n"))


def _broken(line: str, width: int) -> str:
    if len(line) <= width:
        return line
    set_in = " " * (len(line) - len(line.lstrip()) + 4)
    parts = textwrap.wrap(line, width, subsequent_indent=set_in, break_long_words=False, break_on_hyphens=False)
    return "\n".join(parts)


def show_share(options: argparse.Namespace, what: str, done: int, total: int) -> None:
    """How far something is, on a terminal, in one line that is overwritten; `done` == `total` takes it away."""
    show_note(options, "" if done >= total else f"{what}: {done / total:.0%}")


def show_note(options: argparse.Namespace, line: str) -> None:
    """What is going on, on a terminal, in one line that is overwritten; an empty one takes it away."""
    if options.json or not sys.stderr.isatty():
        return
    sys.stderr.write(f"\r{harmless(line)}\033[K")
    sys.stderr.flush()
