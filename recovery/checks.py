"""What stops a run before its first step: no space, and what must not run at the same time. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from agent.protocol.errors import Conflict, RecoveryError
from recovery.plans import Plan
from recovery.runs import Run, RunKind, RunState, StepState
from recovery.sites.contract import Size

NEEDED_BYTES_PER_INSTANCE = 64 << 20
"""Less than this, and a guest cannot even write the logs of its boot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteFacts:
    """What the site has to give now; None: no limit that is known. `sizes` are its named ones; `repairs`: is there boot
    repair? `witnesses`: does somebody keep pictures and evidence of drills?"""

    name: str
    free_bytes: int
    free_memory_mib: int | None = None
    cpus: int | None = None
    sizes: Mapping[str, Size] = field(default_factory=dict)
    repairs: bool = False
    bus: str = "virtio"
    witnesses: bool = False


def refuse_without_space(plan: Plan, facts: SiteFacts) -> None:
    """Raises RecoveryError when the guests could not even write the logs of their boots."""
    count = len(plan.servers)
    if facts.free_bytes < NEEDED_BYTES_PER_INSTANCE * count:
        raise RecoveryError(
            f"site {facts.name} has {facts.free_bytes >> 20} MiB left"
            f" for what {'an instance' if count == 1 else f'{count} instances'} will write",
            "free space there; end drills that are not needed",
        )


def booted_servers(run: Run) -> dict[str, str]:
    """Server id -> name, of the servers that this run boots or brings home."""
    return {step.args["server_id"]: step.args["server"] for step in run.steps if "server_id" in step.args}


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
    if run.kind in (RunKind.DRILL, RunKind.CLONE):
        return
    wanted = booted_servers(run)
    for other in others:
        alike = other.kind.takes_over if run.kind.takes_over else other.kind is run.kind
        if not alike or other.state is RunState.ENDED or _has_moved(other):
            continue
        shared = wanted.keys() & booted_servers(other).keys()
        if shared:  # most have nothing to do with each other, and this looks at all
            shared -= home_servers(other, others)
        if not shared:
            continue
        name = wanted[min(shared)]
        instead = f"; to take over the others: --without {name}" if run.kind.takes_over and len(wanted) > 1 else ""
        if other.kind is RunKind.MIGRATE:
            hint = f"if it failed: understudy retry {other.id}; to call it off: understudy end {other.id}"
            raise Conflict(f"{name} is being migrated by {other.id} ({other.state})", hint + instead)
        if other.kind is RunKind.FAILOVER:
            if other.state is RunState.RUNNING:
                hint = f"follow it: understudy runs {other.id} --follow"
                raise Conflict(f"{name} is being failed over by {other.id}", hint + instead)
            hint = f"bring it home: understudy failback {other.id}; or give it up: understudy end {other.id} --force"
            raise Conflict(f"{name} has been failed over by {other.id} ({other.state})", hint + instead)
        if run.failover_run == other.failover_run:
            hint = f"if it failed: understudy retry {other.id}; to call it off: understudy end {other.id}"
            raise Conflict(f"{name} is being brought home by {other.id} ({other.state})", hint)


def _has_moved(run: Run) -> bool:
    """A migration that is over: its server is protected like any other."""
    return run.kind is RunKind.MIGRATE and run.state is RunState.SUCCEEDED
