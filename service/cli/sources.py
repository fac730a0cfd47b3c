"""What a `panic` says of the sources: declared dead by whoever confirms it, or stopped by their agents."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

from service.cli.client import Service
from service.cli.text import duration

ALIVE_SECONDS = 90.0
"""An agent that lives asks at least every 30 s."""
EVERY_SERVER = "*"
MOST_NAMES = 10


def declared_dead(options: argparse.Namespace) -> list[str]:
    """Whose sources a `panic` declares dead: those named; with --fence alone nobody's; else all, as is then
    confirmed."""
    if options.drill or options.declare_dead or options.fence:
        return list(options.declare_dead)
    return [EVERY_SERVER]


def what_becomes_of_them(service: Service, planned: dict[str, Any]) -> str:
    """Of the sources of this run, in words, for whoever is asked to confirm it."""
    names = list(dict.fromkeys(step["server"] for step in planned["steps"] if step["action"] == "hand_to_instance"))
    stopped = {step["server"] for step in planned["steps"] if step["action"] == "fence_source"}
    dead = [name for name in names if name not in stopped]
    words = still_alive(service, dead)
    if dead:
        words.append(f"you declare dead: {_listed(dead)}; nothing from there is taken any more")
    if stopped:
        words.append(f"stopped by their own agents first: {_listed([name for name in names if name in stopped])}")
    return "; ".join(words)


def what_is_lost(service: Service, run: dict[str, Any]) -> str:
    """With this run's instances, in words."""
    names = {instance["server"] for instance in run["instances"]}
    servers = [server for server in service.get("/api/v1/servers") if server["name"] in names]
    return _listed(
        [
            f"what {server['name']} did since {server['last_point']} ({duration(server['lag_seconds'])} ago)"
            for server in servers
        ]
    )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more


def still_alive(service: Service, names: Collection[str]) -> list[str]:
    """Sentences about those of these servers whose agents were heard a moment ago."""
    found = []
    for server in service.get("/api/v1/servers"):
        if server["name"] in names and server["last_seen_at"]:
            ago = (datetime.now(UTC) - datetime.fromisoformat(server["last_seen_at"])).total_seconds()
            if ago < ALIVE_SECONDS:
                found.append(f"{server['name']} is not dead: its agent was heard {duration(max(ago, 0.0))} ago")
    return found
