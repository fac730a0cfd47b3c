"""Would it work now? What speaks against a run, looked for while all is well. Pure."""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from agent.protocol.errors import Conflict
from agent.protocol.messages import Point
from recovery.checks import NEEDED_BYTES_PER_INSTANCE, SiteFacts
from recovery.control import Server
from recovery.gates import asks_agent
from recovery.plans import Plan
from recovery.plans.model import AUTOMATIC
from recovery.prices import RunPrice
from recovery.runs import Run, RunKind
from recovery.sites.contract import Devices

ADVISED_BYTES_PER_INSTANCE = 1 << 30
STALE_SECONDS = 86_400.0
"""Of a point whose plan promises no RPO."""
DRILL_AGE_SECONDS = 90 * 86_400.0


class Level(enum.StrEnum):
    GREEN = "green"
    AMBER = "amber"
    """It would work, but somebody should know."""
    RED = "red"
    """It would not work, or not as promised."""


class Reason(enum.StrEnum):
    PLAN = "plan"
    RUN = "run"
    """Another one is in the way."""
    POINT = "point"
    BOOT = "boot"
    SPACE = "space"
    MEMORY = "memory"
    SITE = "site"
    ADDRESS = "address"
    GATE = "gate"
    SCRIPT = "script"
    CAP = "cap"
    PRICE = "price"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    level: Level
    reason: Reason
    text: str
    hint: str = ""
    server: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"level": self.level.value, "reason": self.reason.value}


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """The newest run that tells whether a server boots: when it was, and whether all its gates held."""

    run: str
    at: float
    held: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """All that is looked at. `points`, `servers`, `proofs` and `objections` (the site's, to what would be launched) are
    by server name; `over_caps` says in words what the run would exceed; `missing_scripts` likewise; `missing_drivers`
    are files that boot repair has not, should a server need them, by its name; `missing_packages` what it needs on the
    service's machine for any Windows; `taken` are addresses (without prefix length) of what runs now, and the run it
    belongs to; `in_the_way` is why this run could not begin beside those that have not ended. `now` is seconds since
    1970."""

    plan: Plan
    run: Run
    servers: Mapping[str, Server]
    points: Mapping[str, Point]
    facts: SiteFacts
    price: RunPrice
    now: float
    proofs: Mapping[str, Proof] = field(default_factory=dict)
    objections: Mapping[str, list[str]] = field(default_factory=dict)
    over_caps: list[str] = field(default_factory=list)
    missing_scripts: list[str] = field(default_factory=list)
    missing_drivers: Mapping[str, list[str]] = field(default_factory=dict)
    missing_packages: list[str] = field(default_factory=list)
    taken: Mapping[str, str] = field(default_factory=dict)
    in_the_way: Conflict | None = None


def preflight(situation: Situation) -> list[Finding]:
    """What speaks against it; red first, empty when all is well."""
    findings = [finding for check in _CHECKS for finding in check(situation)]
    return sorted(findings, key=lambda finding: finding.level is not Level.RED)


def worst(findings: list[Finding]) -> Level:
    levels = {finding.level for finding in findings}
    return next((level for level in (Level.RED, Level.AMBER) if level in levels), Level.GREEN)


def _freshness(now: Situation) -> Iterator[Finding]:
    """Points are as fresh as the plan promises."""
    promised = now.plan.rpo_seconds
    for server, point in now.points.items():
        age_seconds = now.now - datetime.fromisoformat(point.taken_at).timestamp()
        if age_seconds <= (STALE_SECONDS if promised is None else promised):
            continue
        promise = "" if promised is None else f", and the plan promises {_age(promised)}"
        yield Finding(
            level=Level.AMBER if promised is None else Level.RED,
            reason=Reason.POINT,
            server=server,
            text=f"point {point.id} of {server} is {_age(age_seconds)} old{promise}",
            hint=f"what came after it is not in it; if the server still lives: understudy take {server}",
        )


def _boot(now: Situation) -> Iterator[Finding]:
    """Servers boot here: the newest run that tried says so, else what their agents found at home."""
    try_it = f"to find out, while nothing depends on it: understudy panic {now.plan.name} --drill"
    for name, server in now.servers.items():
        proof = now.proofs.get(name)
        if now.run.kind is RunKind.DRILL:
            pass  # it is about to find out
        elif proof is None:
            text = f"{name} was never booted here, so nobody knows that it would come up"
            yield Finding(level=Level.AMBER, reason=Reason.BOOT, server=name, text=text, hint=try_it)
        elif not proof.held:
            text = f"{name} did not come up when it was last tried ({proof.run})"
            hint = f"see why: understudy runs {proof.run}; an older point may: understudy points {name}"
            yield Finding(level=Level.RED, reason=Reason.BOOT, server=name, text=text, hint=hint)
        elif now.now - proof.at > DRILL_AGE_SECONDS:
            text = f"{name} was last booted here {_age(now.now - proof.at)} ago ({proof.run})"
            yield Finding(level=Level.AMBER, reason=Reason.BOOT, server=name, text=text, hint=try_it)
        held = proof is not None and proof.held
        for found in server.boot_findings:
            if found.level == "ok" or (found.level == "warn" and held):
                continue
            # what a drill has shown to boot, or boot repair sees to, is worth a word and no more
            stops = found.level == "stop" and not held and not now.facts.repairs
            yield Finding(
                level=Level.RED if stops else Level.AMBER,
                reason=Reason.BOOT,
                server=name,
                text=f"{name}: {found.what}",
                hint=found.way_out,
            )


def _other_runs(now: Situation) -> Iterator[Finding]:
    if now.in_the_way is not None:
        text, hint = now.in_the_way.message, now.in_the_way.hint
        yield Finding(level=Level.RED, reason=Reason.RUN, text=text, hint=hint)


def _windows(now: Situation) -> Iterator[Finding]:
    """It can be repaired, and has drivers for the site's hardware or can be given them, as one that came up has."""
    windows = [name for name, server in now.servers.items() if server.windows]
    if windows and now.missing_packages:
        packages = " ".join(now.missing_packages)
        text = f"{windows[0]} runs Windows, and boot repair here lacks {packages}"
        hint = f"on the service's machine: apt-get install {packages}"
        yield Finding(level=Level.AMBER, reason=Reason.BOOT, server=windows[0], text=text, hint=hint)
    forced = {wanted.name for wanted in now.plan.servers if wanted.devices == Devices.VIRTIO}
    for name, missing in now.missing_drivers.items():
        proof = now.proofs.get(name)
        if missing and not (proof and proof.held):
            files = " and no ".join(missing)
            other = "does not start" if name in forced else "starts on AHCI disks and an e1000e card, which is slower"
            text = f"{name} runs Windows, and there is no {files} here: without virtio drivers of its own, it {other}"
            hint = f"put virtio-win's files for its Windows into DATA/drivers, or into DATA/drivers/{name}"
            yield Finding(level=Level.AMBER, reason=Reason.BOOT, server=name, text=text, hint=hint)


def _space(now: Situation) -> Iterator[Finding]:
    count = len(now.plan.servers)
    if now.facts.free_bytes < ADVISED_BYTES_PER_INSTANCE * count:
        yield Finding(
            level=Level.RED if now.facts.free_bytes < NEEDED_BYTES_PER_INSTANCE * count else Level.AMBER,
            reason=Reason.SPACE,
            text=f"site {now.facts.name} has {now.facts.free_bytes >> 20} MiB left"
            f" for what {'an instance' if count == 1 else f'{count} instances'} will write",
            hint="free space there; end drills that are not needed",
        )


def _memory(now: Situation) -> Iterator[Finding]:
    free_mib, wanted_mib = now.facts.free_memory_mib, now.price.memory_mib
    if free_mib is not None and free_mib < wanted_mib:
        # Not red: guests rarely touch all they are given, and in a disaster swapping beats refusing.
        text = f"plan {now.plan.name} wants {wanted_mib} MiB of memory, site {now.facts.name} has {free_mib}"
        hint = "lower memory_mib in the plan, or end drills that are not needed"
        yield Finding(level=Level.AMBER, reason=Reason.MEMORY, text=text, hint=hint)
    for launch in {launch.args["server"]: launch for launch in now.run.launches()}.values():  # copies are alike
        server = now.servers[launch.args["server"]]
        by_plan = next(wanted for wanted in now.plan.servers if wanted.name == server.name)
        if by_plan.memory_mib is None and server.memory_mib and launch.args["memory_mib"] < server.memory_mib / 2:
            text = f"{server.name} gets {launch.args['memory_mib']} MiB here, and has {server.memory_mib} at home"
            hint = "end what is not needed here, or say memory_mib in the plan"
            yield Finding(level=Level.AMBER, reason=Reason.MEMORY, server=server.name, text=text, hint=hint)


def _sizes(now: Situation) -> Iterator[Finding]:
    """Somebody knows how large each server has to be."""
    gets = {launch.args["server"]: launch.args for launch in now.run.launches()}
    for wanted in now.plan.servers:
        server = now.servers[wanted.name]
        known = {
            "how many processors": wanted.cpus or server.cpus,
            "how much memory": wanted.memory_mib or server.memory_mib,
        }
        unknown = " and ".join(words for words, count in known.items() if not count)
        if unknown and wanted.size == AUTOMATIC:
            size = f"{gets[wanted.name]['cpus']} CPUs and {gets[wanted.name]['memory_mib']} MiB"
            text = (
                f"nobody knows {unknown} {wanted.name} has at home (an image file tells nothing of it): it gets {size}"
            )
            hint = "say cpus and memory_mib in its plan, or a size"
            yield Finding(level=Level.AMBER, reason=Reason.MEMORY, server=wanted.name, text=text, hint=hint)


def _site(now: Situation) -> Iterator[Finding]:
    for server, objections in now.objections.items():
        for text in objections:
            yield Finding(level=Level.RED, reason=Reason.SITE, server=server, text=f"{server}: {text}")


def _addresses(now: Situation) -> Iterator[Finding]:
    for launch in now.run.launches():
        address = launch.args["address"]
        run_id = now.taken.get(str(ipaddress.ip_interface(address).ip)) if address else None
        if run_id is not None:
            name = launch.args["server"]
            text = f"{name} would have the address {address}, and something of {run_id} has it now"
            hint = f"understudy end {run_id}, or another address in the plan"
            yield Finding(level=Level.RED, reason=Reason.ADDRESS, server=name, text=text, hint=hint)


def _gates(now: Situation) -> Iterator[Finding]:
    """Something tells whether each server works, in a drill too, and each gate's port can be reached."""
    for wanted in now.plan.servers:
        hint = "add a gate: http, tcp or console"
        if not wanted.gates:
            text = f"{wanted.name} has no gate: nothing would tell whether it works"
            yield Finding(level=Level.AMBER, reason=Reason.GATE, server=wanted.name, text=text, hint=hint)
        elif all(asks_agent(gate) for gate in wanted.gates):
            text = f"{wanted.name} has no gate that a drill can look at: its agent reaches nobody from there"
            yield Finding(level=Level.AMBER, reason=Reason.GATE, server=wanted.name, text=text, hint=hint)


def _scripts(now: Situation) -> Iterator[Finding]:
    for text in now.missing_scripts:
        yield Finding(level=Level.RED, reason=Reason.SCRIPT, text=text)


def _money(now: Situation) -> Iterator[Finding]:
    for text in now.over_caps:
        hint = 'raise the cap, or let it pass once: --over-cap "REASON"'
        yield Finding(level=Level.RED, reason=Reason.CAP, text=text, hint=hint)
    if not now.price.known:
        text = f"what this costs at site {now.facts.name} is not known"
        yield Finding(level=Level.AMBER, reason=Reason.PRICE, text=text)


_CHECKS: tuple[Callable[[Situation], Iterator[Finding]], ...] = (
    _other_runs,
    _freshness,
    _boot,
    _windows,
    _space,
    _memory,
    _sizes,
    _site,
    _addresses,
    _gates,
    _scripts,
    _money,
)


def _age(seconds: float) -> str:
    if seconds < 7200:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.0f} hours" if seconds < 172_800 else f"{seconds / 86_400:.0f} days"
