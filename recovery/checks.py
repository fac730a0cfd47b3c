"""What is looked at before a run: what would go wrong, and what must not run at the same time. Pure."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from agent.protocol.errors import Conflict
from agent.protocol.messages import Point
from recovery.plans import Plan
from recovery.runs import Run, RunKind, RunState, StepState

NEEDED_BYTES_PER_INSTANCE = 64 << 20
"""Less than this, and a guest cannot even write the logs of its boot."""
ADVISED_BYTES_PER_INSTANCE = 1 << 30
STALE_SECONDS = 86_400.0


class Level(enum.StrEnum):
    AMBER = "amber"
    """It would work, but somebody should know."""
    RED = "red"
    """It would not work."""


class Reason(enum.StrEnum):
    SPACE = "space"
    MEMORY = "memory"
    STALE_POINT = "stale_point"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    level: Level
    reason: Reason
    text: str
    hint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteFacts:
    """What the site has to give now; `free_memory_mib` is None where nobody knows."""

    name: str
    free_bytes: int
    free_memory_mib: int | None = None


def preflight(plan: Plan, points: Mapping[str, Point], facts: SiteFacts, now: float) -> list[Finding]:
    """What speaks against booting these points now; red first, empty when all is well. `points` by server name."""
    findings: list[Finding] = []
    count = len(plan.servers)
    free_mib = facts.free_bytes >> 20
    if facts.free_bytes < ADVISED_BYTES_PER_INSTANCE * count:
        red = facts.free_bytes < NEEDED_BYTES_PER_INSTANCE * count
        text = f"site {facts.name} has {free_mib} MiB left for what {count} instance(s) will write"
        level = Level.RED if red else Level.AMBER
        findings.append(
            Finding(
                level=level, reason=Reason.SPACE, text=text, hint="free space there; end drills that are not needed"
            )
        )
    wanted_mib = sum(server.memory_mib for server in plan.servers)
    if facts.free_memory_mib is not None and facts.free_memory_mib < wanted_mib:
        # Never red: guests rarely touch all they are given, and in a disaster swapping beats refusing.
        text = f"plan {plan.name} wants {wanted_mib} MiB of memory, site {facts.name} has {facts.free_memory_mib} MiB"
        hint = "lower memory_mib in the plan, or end drills that are not needed"
        findings.append(Finding(level=Level.AMBER, reason=Reason.MEMORY, text=text, hint=hint))
    for server, point in points.items():
        age_seconds = now - datetime.fromisoformat(point.taken_at).timestamp()
        if age_seconds > STALE_SECONDS:
            text = f"point {point.id} of {server} is {age_seconds / 3600:.0f} hours old"
            hint = f"what came after it is not in it; if the server still lives: understudy take {server}"
            findings.append(Finding(level=Level.AMBER, reason=Reason.STALE_POINT, text=text, hint=hint))
    return sorted(findings, key=lambda finding: finding.level is not Level.RED)


def booted_servers(run: Run) -> dict[str, str]:
    """Server id -> name, of the servers that this run boots or brings home."""
    return {step.args["server_id"]: step.args["server"] for step in run.steps}


def home_servers(failover_run: Run, runs: Iterable[Run]) -> set[str]:
    """Ids of the servers of this failover that a failback has brought home."""
    return {
        step.args["server_id"]
        for run in runs
        if run.kind is RunKind.FAILBACK and run.failover_run == failover_run.id
        for step in run.steps
        if step.action == "settle" and step.state is StepState.DONE
    }


def refuse_conflict(run: Run, others: Sequence[Run]) -> None:
    """A server has one failover at a time, and that one failback. Raises Conflict naming the run in the way."""
    if run.kind is RunKind.DRILL:
        return
    wanted = booted_servers(run)
    for other in others:
        if other.kind is not run.kind or other.state is RunState.ENDED:
            continue
        shared = (wanted.keys() & booted_servers(other).keys()) - home_servers(other, others)
        if not shared:
            continue
        name = wanted[min(shared)]
        if run.kind is RunKind.FAILOVER:
            hint = f"bring it home: understudy failback {other.id}; or give it up: understudy end {other.id} --force"
            raise Conflict(f"{name} has been failed over by {other.id} ({other.state})", hint)
        if run.failover_run == other.failover_run:
            hint = f"if it failed: understudy retry {other.id}; to call it off: understudy end {other.id}"
            raise Conflict(f"{name} is being brought home by {other.id} ({other.state})", hint)
