"""What commands print for people: aligned tables, sizes and times in few characters."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from agent.protocol.errors import UsageError


def table(headings: Sequence[str], rows: Sequence[Sequence[Any]], empty: str) -> str:
    """Columns as wide as their widest cell; `empty` where there are no rows."""
    if not rows:
        return empty
    cells = [list(headings), *[["-" if cell is None else str(cell) for cell in row] for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )


def size(size_bytes: int) -> str:
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.2f} TiB"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.0f} d"


def instant(seconds: float | None) -> str:
    """Seconds since 1970 as UTC."""
    return "-" if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def seconds_of(text: str) -> float:
    """`24h`, `90m`, `2d`, `600s`. Raises UsageError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if found is None:
        raise UsageError(f"{text!r} is no length of time", "say it like 90m, 24h or 2d")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86_400}[found[2]]


def mark(value: bool | None) -> str:
    return {True: "yes", False: "NO", None: "not tried"}[value]
