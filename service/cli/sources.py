"""What a `panic` says of the sources: declared dead by whoever confirms it, or stopped by their agents."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from typing import Any

from service.cli.client import Service
from service.cli.text import duration

ALIVE_SECONDS = 90.0
"""An agent that lives asks at least every 30 s."""
EVERY_SERVER = "*"


def declared_dead(options: argparse.Namespace) -> list[str]:
    """Whose sources a `panic` declares dead: those named; with --fence nobody's; else all, as is then confirmed."""
    if options.drill or options.fence:
        return []
    return options.declare_dead or [EVERY_SERVER]


def still_alive(service: Service, planned: dict[str, Any]) -> list[str]:
    """Sentences about servers of this run whose agents were heard a moment ago."""
    wanted = {step["server"] for step in planned["steps"] if step["server"]}
    found = []
    for server in service.get("/api/v1/servers"):
        if server["name"] in wanted and server["last_seen_at"]:
            ago = (datetime.now(UTC) - datetime.fromisoformat(server["last_seen_at"])).total_seconds()
            if ago < ALIVE_SECONDS:
                found.append(f"{server['name']} is not dead: its agent was heard {duration(max(ago, 0.0))} ago")
    return found
