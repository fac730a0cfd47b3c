"""Whether boot repair may be passed over, and why: what has shown that a server boots at the site as it is. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from recovery.control import Server
from recovery.proofs import booted_point, verdicts
from recovery.runs import Run, Step, StepState
from recovery.sites.contract import Devices


@dataclass(frozen=True, slots=True, kw_only=True)
class Booted:
    """How a server's last boot at the site went. `as_it_is`: nothing had been repaired; `bus`: of its disks."""

    run: str
    point: str
    held: bool
    as_it_is: bool
    bus: str = Devices.VIRTIO
    boot_digest: str | None = None


def last_boots(runs: Iterable[Run]) -> dict[str, Booted]:
    """The newest verdict on each server, by name. `runs` are newest first."""
    found: dict[str, Booted] = {}
    for run in runs:
        for launch, proof in verdicts(run):
            booted = Booted(
                run=run.id,
                point=booted_point(launch),
                held=proof.held,
                as_it_is=not _was_repaired(run, launch),
                bus=devices_of(run, launch.args),
                boot_digest=launch.args.get("boot_digest"),
            )
            found.setdefault(launch.args["server"], booted)
    return found


def why_ready(server: Server, point_id: str, bus: str, last: Booted | None) -> str | None:
    """Why this point of the server boots on `bus` without repair, in words; None: that is not certain.

    A server that did not come up last time is always looked at, whatever its agent says."""
    if last is not None and not last.held:
        return None
    if bus in server.boots_on:
        return f"its agent found that it boots on {bus} as it is"
    if last is None or not last.as_it_is or last.bus != bus:
        return None
    if last.point == point_id:
        return f"{last.run} booted this point as it is"
    if last.boot_digest is not None and last.boot_digest == server.boot_digest:
        return f"{last.run} booted it as it is, and nothing that a boot reads has changed since"
    return None


def devices_of(run: Run, args: Mapping[str, Any]) -> Devices:
    """What a launch step with these args attaches: as the plan says, else as its boot repair found that it needs."""
    repair = repair_of(run, args["instance_id"])
    found = repair.result.get("devices") if repair is not None else None
    return Devices(args.get("devices") or found or Devices.VIRTIO)


def repair_of(run: Run, instance_id: str) -> Step | None:
    return next(
        (step for step in run.steps if step.action == "repair" and step.args["instance_id"] == instance_id), None
    )


def _was_repaired(run: Run, launch: Step) -> bool:
    """Also when nobody knows: a repair that failed half way."""
    repair = repair_of(run, launch.args["instance_id"])
    if repair is None or repair.args.get("skip"):
        return False
    return repair.state is not StepState.DONE or bool(repair.result.get("changes", 0))
