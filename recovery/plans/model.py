"""What a recovery plan says, as plain data."""

from __future__ import annotations

import heapq
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from agent.protocol.errors import UsageError
from recovery.gates import ConsoleGate, Gate, ports_of
from recovery.points import LATEST
from recovery.repair.windows.firstboot import SAYS_UP

DEFAULT_GATE_SECONDS = 300.0
WINDOWS_GATE_SECONDS = 900.0
"""It looks for all of its devices anew, and may restart for them, before its services start."""
DEFAULT_SCRIPT_SECONDS = 300.0
MAX_RETRIES = 100
DHCP = "dhcp"
SAME = "same"
AUTOMATIC = "automatic"
DRILL, FAILOVER = MODES = ("drill", "failover")

_RULE = re.compile(r"stop|continue|retry (\d{1,3})(?:, then (stop|continue))?")


@dataclass(frozen=True, slots=True)
class FailureRule:
    """What a step's failure means: try it `retries` times more, then go on with what comes after it, or stop there."""

    retries: int = 0
    goes_on: bool = False

    @classmethod
    def parse(cls, text: str) -> FailureRule | None:
        """`stop`, `continue`, `retry 3`, `retry 3, then continue`; None where it is none of these."""
        found = _RULE.fullmatch(text)
        if found is None or int(found[1] or 0) > MAX_RETRIES:
            return None
        return cls(int(found[1] or 0), text.endswith("continue"))

    def __str__(self) -> str:
        if not self.retries:
            return "continue" if self.goes_on else "stop"
        return f"retry {self.retries}" + (", then continue" if self.goes_on else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """A program of the service's scripts folder: its name, and what it is called with.

    What it does (switch DNS, tell customers) is rarely wanted in a drill, so there it has to be asked for."""

    argv: tuple[str, ...]
    in_drills: bool = False
    timeout_seconds: float = DEFAULT_SCRIPT_SECONDS
    on_failure: FailureRule | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanServer:
    """How one server is booted, and what must hold before what comes after it.

    `cpus` and `memory_mib` None: as `size` says, a name that the site knows or `automatic` (as at home, as far as the
    site has it). `addresses` by mode (drill, failover): `dhcp`, `same` (as at home) or like 10.0.0.7/24.
    `devices`: recovery.sites.contract.Devices, or `automatic`: virtio, but for a Windows that has no drivers for these.
    `ports`: guest TCP port -> port at the site, 0 for any; a gate's port that is not named here counts as 0."""

    name: str
    size: str = AUTOMATIC
    cpus: int | None = None
    memory_mib: int | None = None
    ports: Mapping[int, int] = field(default_factory=dict)
    addresses: Mapping[str, str] = field(default_factory=dict)
    gates: tuple[Gate, ...] = ()
    repair: bool = True
    devices: str = AUTOMATIC
    on_failure: FailureRule | None = None

    @property
    def all_ports(self) -> dict[int, int]:
        return dict.fromkeys(ports_of(self.gates), 0) | dict(self.ports)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Servers that are booted side by side. `after` names the groups that have to be up before; None: the one before
    it in the plan. `wait_seconds` pass once all gates have held, then come the `post` scripts."""

    servers: tuple[PlanServer, ...]
    name: str | None = None
    after: tuple[str, ...] | None = None
    wait_seconds: float = 0.0
    pre: tuple[Script, ...] = ()
    post: tuple[Script, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Caps:
    """What a run may not exceed; None: no limit."""

    instances: int | None = None
    price_per_hour: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`point` is what is booted unless the operator says otherwise (see recovery.points). `one_instant_seconds`: all
    servers' points must lie within so many seconds. `networks` by mode: the site's name of the network to boot on."""

    name: str
    groups: tuple[Group, ...]
    point: str = LATEST
    one_instant_seconds: float | None = None
    rpo_seconds: float | None = None
    on_failure: FailureRule = FailureRule()
    networks: Mapping[str, str] = field(default_factory=dict)
    caps: Caps = Caps()
    pre: tuple[Script, ...] = ()
    post: tuple[Script, ...] = ()

    @property
    def servers(self) -> tuple[PlanServer, ...]:
        return tuple(server for group in self.groups for server in group.servers)

    @property
    def scripts(self) -> tuple[Script, ...]:
        grouped = [script for group in self.groups for script in (*group.pre, *group.post)]
        return (*self.pre, *grouped, *self.post)


def without(plan: Plan, names: Collection[str]) -> Plan:
    """The plan without these servers. Groups stay, with their scripts and their places in the order. Raises UsageError
    (a name that is not in it, nothing is left)."""
    known = [server.name for server in plan.servers]
    unknown = sorted({*names} - {*known})
    if unknown:
        raise UsageError(f"plan {plan.name} has no server {unknown[0]!r}", f"it has: {', '.join(known)}")
    if {*known} <= {*names}:
        raise UsageError(f"nothing is left of plan {plan.name}", "leave fewer servers out")
    groups = [
        replace(group, servers=tuple(server for server in group.servers if server.name not in names))
        for group in plan.groups
    ]
    return replace(plan, groups=tuple(groups))


def depends_on(groups: Sequence[Group]) -> list[list[int]]:
    """For each group the positions of those that it waits for. Names that there are not are left out."""
    named = {group.name: position for position, group in enumerate(groups) if group.name is not None}
    found = []
    for position, group in enumerate(groups):
        if group.after is None:
            found.append([position - 1] if position else [])
        else:
            found.append([named[name] for name in group.after if name in named])
    return found


def in_order(needs: Sequence[Sequence[int]]) -> list[int]:
    """Positions so that each comes after those it needs, else as they are; those in a cycle are left out."""
    waits_for = [len(set(its)) for its in needs]
    waiting: list[list[int]] = [[] for _ in needs]
    for position, its in enumerate(needs):
        for need in set(its):
            waiting[need].append(position)
    ready = [position for position, count in enumerate(waits_for) if not count]
    order: list[int] = []
    while ready:
        order.append(heapq.heappop(ready))
        for position in waiting[order[-1]]:
            waits_for[position] -= 1
            if not waits_for[position]:
                heapq.heappush(ready, position)
    return order


def default_plan(server: str, *, windows: bool = False) -> Plan:
    """What a server without a written plan gets: boot it, and wait until its console shows that it is up: by a login
    prompt, or what boot repair has a Windows say."""
    gate = ConsoleGate(text="login:", timeout_seconds=DEFAULT_GATE_SECONDS)
    if windows:
        gate = ConsoleGate(text=SAYS_UP, timeout_seconds=WINDOWS_GATE_SECONDS)
    return Plan(name=server, groups=(Group(servers=(PlanServer(name=server, gates=(gate,)),)),))
