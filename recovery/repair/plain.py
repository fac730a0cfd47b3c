"""Words of a guest's that people will read: on a terminal, in a log, in the console."""

from __future__ import annotations

_LONGEST = 400


def plain(text: str) -> str:
    """On one line, of bounded length, without what a terminal would obey."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text[:_LONGEST])
