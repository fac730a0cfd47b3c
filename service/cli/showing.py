"""A run in words: one line in the list of all, its steps, and what became of each server."""

from __future__ import annotations

import time
from typing import Any

from service.cli.text import ago, duration, instant, shown

Document = dict[str, Any]
_STATES = {"done": "done", "failed": "FAILED"}
_OF_IDENTITY = ("fence_source", "last_point", "hand_to_instance", "retire_source")
"""What is never passed over."""
_UNSAID = "it has not said, so see to it that clients do not reach it"


def now_text(run: Document) -> str:
    """What is going on, or can be done, in a few words."""
    if run["state"] == "running":
        names = [step["name"] for step in run["steps"] if step["state"] == "running"]
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        return names[0] + more if names else "begins"
    if run["state"] == "failed":
        failed = failed_step(run)
        return f"at '{failed['name']}'" if failed else ""
    if run["state"] == "ending":
        return next((step["waits_for"] for step in run["steps"] if step["waits_for"]), "is being removed")
    if run["state"] == "succeeded" and run["kind"] == "drill":
        return f"ends at {instant(run['expires_at'])}"
    if run["committed_at"] and run["kind"] == "failover":
        return "committed"
    return f"rollback until {instant(run['rollback_until'])}" if _can_be_undone(run) else ""


def steps_text(run: Document) -> str:
    """Each step: how it ended, or what it waits for."""
    lines = []
    for number, step in enumerate(run["steps"], 1):
        line = f"[{number}/{len(run['steps'])}] {step['name']}"
        if step["state"] in _STATES:
            passed = ", passed over" if step["state"] == "failed" and step["optional"] else ""
            lines.append(f"{line}: {_STATES[step['state']]}, {duration(step['seconds'])}{passed}")
        else:
            lines.append(f"{line} ..." if step["state"] == "running" else f"{line}: not begun")
        said = [step["waits_for"], step["error"] if step["state"] == "failed" else None, step["result"].get("note")]
        lines += [indented(words) for words in said if words]
    return "\n".join(lines)


def servers_lines(run: Document) -> list[str]:
    """Whether each server that was to be booted works, and where it is reached."""
    lines = []
    for instance in run["instances"]:
        reached = [f"port {port} is at {address}" for port, address in instance["addresses"].items()]
        its = [step for step in run["steps"] if step["instance"] == instance["id"]]
        titles = [step["name"].removeprefix("launch ") for step in its if step["action"] == "launch"]
        lines.append("  " + ", ".join([f"{titles[0]}: {_standing(instance, its)}", *reached]))
    return lines


def _standing(instance: Document, its: list[Document]) -> str:
    failed = next((step for step in its if step["state"] == "failed" and step["action"] in ("launch", "gate")), None)
    if instance["state"] == "gone":
        return "removed"
    if failed is not None:
        return f"{instance['state']}, but '{failed['name']}' failed"
    if any(step["action"] == "launch" and step["state"] == "pending" for step in its):
        return "not launched"
    gates = [step for step in its if step["action"] == "gate"]
    works = instance["state"] == "running" and gates and all(step["state"] == "done" for step in gates)
    return "works" if works else str(instance["state"])


def ways_on(run: Document) -> list[str]:
    """What an operator may do with a run that is at rest."""
    name = run["id"]
    if run["not_called_off"]:
        return [
            f"try again to call it off: understudy retry {name}",
            f"leave everything as it is now: understudy retry {name} --go-on (who is the server: understudy servers)",
        ]
    if run["state"] == "failed":
        failed = failed_step(run)
        ways = [f"try again: understudy retry {name}"]
        if failed and run["kind"] != "failback" and not failed["optional"] and failed["action"] not in _OF_IDENTITY:
            ways.append(f"go on without what failed: understudy retry {name} --go-on")
        if _can_be_undone(run):
            ways.append(_rollback(run))
        what = "call it off" if run["kind"] == "failback" else "remove what it made"
        return [*ways, f"{what}: understudy end {name}"]
    if run["state"] == "running":
        return [f"follow it: understudy runs {name} --follow"]
    if run["state"] != "succeeded":
        return []
    if run["kind"] == "drill":
        return [
            f"the evidence, signed: understudy evidence {name}",
            f"when you have seen enough: understudy end {name} (by itself at {instant(run['expires_at'])})",
        ]
    if run["kind"] == "clone":
        return [f"when you need them no more: understudy end {name}"]
    ways = []
    if run["kind"] == "failover":
        ways.append(f"the way home: understudy failback {name}")
    if _can_be_undone(run):
        ways.append(_rollback(run))
    return ways


def _can_be_undone(run: Document) -> bool:
    return run["rollback_until"] is not None and run["rollback_until"] > time.time()


def _rollback(run: Document) -> str:
    return f"until {instant(run['rollback_until'])} it can be undone: understudy rollback {run['id']}"


def stale_text(server: Document) -> str:
    """A line about a machine that came though another is the server; empty where none did."""
    stale = server["stale"]
    if stale is None:
        return ""
    return (
        f"{server['name']}: machine {stale['machine']} is not the server now, and was told to stand down at"
        f" {shown(stale['since'])} (last seen {ago(stale['seen_at'])}); what it stopped: {stale['stopped'] or _UNSAID}"
    )


def indented(text: str) -> str:
    return "\n".join(f"      {line}" for line in text.splitlines())


def failed_step(run: Document) -> Document | None:
    """What keeps it from going on, else what was passed over."""
    failed = [step for step in run["steps"] if step["state"] == "failed"]
    return next((step for step in failed if not step["optional"]), next(iter(failed), None))
