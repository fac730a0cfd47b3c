"""Commands about servers, their points and tokens."""

from __future__ import annotations

import argparse
from typing import Any

from agent.protocol.errors import RecoveryError, UnderstudyError
from service.cli.client import Service, api
from service.cli.output import emit, show_note
from service.cli.showing import stale_text
from service.cli.text import ago, duration, mark, shown, size, table

_WAIT_SECONDS = 25


def enroll_token(options: argparse.Namespace) -> None:
    issued = Service.of(options).post(
        "/api/v1/enroll-tokens",
        {"name": options.name, "expires_hours": options.expires_hours, "tenant": options.tenant or "default"},
    )
    text = f"{issued['token']}\n\non the server, before {issued['expires_at']}:\n  {issued['command']}"
    emit(options, issued, text)


def list_servers(options: argparse.Namespace) -> None:
    servers = Service.of(options).get("/api/v1/servers", tenant=options.tenant)
    rows = [
        [
            server["name"],
            server["state"].replace("_", " "),
            duration(server["lag_seconds"]),
            ago(server["last_seen_at"]),
            size(sum(volume["size_bytes"] for volume in server["volumes"])),
            server["last_point"],
            "NO"
            if server["bootable"] is False
            else "never"
            if not server["proven_at"]
            else f"{server['proven_at'][:10]} {server['proven_at'][11:16]}",
        ]
        for server in servers
    ]
    none = "no server is protected yet; begin with: understudy enroll-token"
    headings = ["SERVER", "STATE", "LAG", "SEEN", "SIZE", "NEWEST POINT", "PROVEN BOOTABLE"]
    told = (_damage_text, _away_text, stale_text, _moved_text)
    notes = [line for server in servers for text in told if (line := text(server))]
    emit(options, servers, "\n".join([table(headings, rows, none), *notes]))


def _damage_text(server: dict[str, Any]) -> str:
    return f"{server['name']}: {server['error']}" if server["error"] else ""


def _away_text(server: dict[str, Any]) -> str:
    """A line about a server that is not at home; empty for those that are."""
    name, since = server["name"], shown(server["state_since"] or "")
    if server["state"] == "failed_over":
        run = server["failover_run"]
        return f"{name}: its instance is the server since {since}, by {run}; the way home: understudy failback {run}"
    if server["state"] == "failing_back":
        return f"{name}: handed home at {since}, by {server['failback_run']}"
    return ""


def _moved_text(server: dict[str, Any]) -> str:
    """A line about volumes that are other disks on the machine that is the server now; empty where none is."""
    moved = [f"{volume['path']} is {volume['found_at']}" for volume in server["volumes"] if volume.get("found_at")]
    return f"{server['name']}: on the machine that it runs on, {', '.join(moved)}" if moved else ""


def list_points(options: argparse.Namespace) -> None:
    points = Service.of(options).get(api("servers", options.server, "points"), tenant=options.tenant)
    headings = ["POINT", "TAKEN AT", "CONSISTENCY", "SIZE", "SENT", "VERIFIED", "BOOTS", "LABEL"]
    rows = [
        [
            point["id"],
            point["taken_at"],
            f"{point['consistency']}, {point['completeness']}",
            size(point["size_bytes"]),
            size(point["sent_bytes"]),
            ago(point["verified_at"]) if point["verified_at"] else "no",
            mark(point["bootable"]),
            point["label"],
        ]
        for point in points
    ]
    held = [f"{point['id']} is held: {point['held_because']}" for point in points if point["held_because"]]
    text = "\n".join([table(headings, rows, f"no points of {options.server} yet"), *held])
    emit(options, points, text)


def take(options: argparse.Namespace) -> None:
    service = Service.of(options)
    asked = service.post(api("servers", options.server, "take"), {"label": options.label}, tenant=options.tenant)
    was_deaf = False
    try:
        while True:
            command = service.get(api("commands", asked["id"]), tenant=options.tenant, wait_seconds=_WAIT_SECONDS)
            if command["state"] == "done":
                break
            # Once may be the moment between a push's end and the agent's word of it.
            if was_deaf and command["deaf"]:
                raise UnderstudyError.from_json(command["deaf"])
            was_deaf = command["deaf"] is not None
            show_note(options, f"waiting for the agent of {options.server}")
    finally:
        show_note(options, "")
    if command["point"] is None:
        raise RecoveryError(f"{options.server} made no point: {command['error']}")
    point = service.get(api("points", command["point"]), tenant=options.tenant)
    emit(options, point, f"{point['id']} taken at {point['taken_at']}, {size(point['sent_bytes'])} sent")
