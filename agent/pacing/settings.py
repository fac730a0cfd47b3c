"""pacing.json in the state folder: the bandwidth limit and the priority, as an operator set them.

{"limit": {"bytes_a_second": 2500000, "between": "08:00-18:00" or null} or null, "priority": "low" or null}
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.files import write_whole
from agent.pacing.priority import Priority
from agent.pacing.rate import LEAST_BYTES_A_SECOND, Limit, parse_hours
from agent.protocol.errors import UsageError

FILE = "pacing.json"


@dataclass(frozen=True, slots=True)
class Settings:
    """`priority` is None where nobody said anything."""

    limit: Limit | None = None
    priority: Priority | None = None


def load(folder: Path) -> Settings:
    """Raises UsageError for a file that cannot be read or is damaged."""
    path = folder / FILE
    try:
        document = json.loads(path.read_bytes())
        limit, priority = document["limit"], document["priority"]
        return Settings(None if limit is None else _limit(limit), None if priority is None else Priority(priority))
    except FileNotFoundError:
        return Settings()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", "run as the user who enrolled") from None
    except (ValueError, KeyError, TypeError, UsageError):
        raise UsageError(f"{path} is damaged", "remove it, and set again: understudy-agent limit RATE|none") from None


def save(folder: Path, settings: Settings) -> None:
    """Atomically: a push that looks meanwhile sees the old settings or the new ones. Raises UsageError."""
    limit = settings.limit
    document = {
        "limit": limit
        and {"bytes_a_second": limit.bytes_a_second, "between": str(limit.between) if limit.between else None},
        "priority": settings.priority and settings.priority.value,
    }
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder} cannot be made: {error.strerror}", "run as root") from None
    write_whole(folder / FILE, json.dumps(document).encode())


def _limit(document: dict[str, Any]) -> Limit:
    between = document["between"]
    rate = document["bytes_a_second"]
    if type(rate) is not int or rate < LEAST_BYTES_A_SECOND:
        raise ValueError(rate)
    return Limit(rate, None if between is None else parse_hours(between))
