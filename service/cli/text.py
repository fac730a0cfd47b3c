"""What commands print for people: aligned tables, sizes and times in few characters."""

from __future__ import annotations

import argparse
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
    """Seconds since 1970 as UTC, as `--point` takes it, too."""
    return "-" if seconds is None else shown(datetime.fromtimestamp(seconds, UTC).isoformat())


def shown(iso_time: str) -> str:
    """A time in UTC to the second, as people read it."""
    return iso_time[:19] + "Z"


def ago(iso_time: str | None) -> str:
    """How long this time in UTC is past."""
    if iso_time is None:
        return "not yet"
    return duration(max(0.0, (datetime.now(UTC) - datetime.fromisoformat(iso_time)).total_seconds())) + " ago"


def counted(count: int, what: str) -> str:
    """`1 instance`, `2 instances`."""
    return f"{count} {what}" + ("" if count == 1 else "s")


def seconds_of(text: str) -> float:
    """`24h`, `90m`, `2d`, `600s`. Raises UsageError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if found is None:
        raise UsageError(f"{text!r} is no length of time", "say it like 90m, 24h or 2d")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86_400}[found[2]]


def length_of_time(text: str) -> float:
    """For parsers of command lines: as seconds_of."""
    try:
        return seconds_of(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def at_least_one(text: str) -> int:
    """For parsers of command lines."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def host_and_port(text: str) -> tuple[str, int]:
    """For parsers of command lines."""
    host, separator, port = text.rpartition(":")
    if not separator or not port.isdecimal() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT, like 127.0.0.1:8470")
    return host.strip("[]") or "127.0.0.1", int(port)


def mark(value: bool | None) -> str:
    return {True: "yes", False: "NO", None: "not tried"}[value]
