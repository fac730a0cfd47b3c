"""How large an instance is, and at which address: from the plan, the server at home, and what the site has. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

from agent.protocol.errors import UsageError
from recovery.checks import SiteFacts
from recovery.control import Server
from recovery.plans import Plan, PlanServer
from recovery.plans.model import AUTOMATIC, DHCP, SAME
from recovery.runs import RunKind
from recovery.sites.contract import Size

DEFAULT = Size(cpus=2, memory_mib=1024)
"""Where nobody knows what the server has at home."""
MIN_MEMORY_MIB = 512
MEMORY_SHARE = 0.8
"""Of what the site has free, so much is shared out among servers of automatic size: the site itself lives too."""


def sizes(plan: Plan, servers: Mapping[str, Server], facts: SiteFacts) -> dict[str, Size]:
    """By server. Raises UsageError for a size that the site does not know.

    An automatic size is the one at home, smaller where the site has less: in a disaster a small server beats none."""
    found: dict[str, Size] = {}
    automatic = [wanted for wanted in plan.servers if wanted.size == AUTOMATIC and wanted.memory_mib is None]
    for wanted in plan.servers:
        if wanted.size != AUTOMATIC:
            found[wanted.name] = _named(plan, wanted, facts)
        elif wanted.memory_mib is not None:
            found[wanted.name] = Size(cpus=_cpus(wanted, servers, facts), memory_mib=wanted.memory_mib)
    share_mib = None
    if facts.free_memory_mib is not None and automatic:
        left_mib = facts.free_memory_mib * MEMORY_SHARE - sum(size.memory_mib for size in found.values())
        share_mib = max(int(left_mib / len(automatic)), MIN_MEMORY_MIB)
    for wanted in automatic:
        at_home_mib = servers[wanted.name].memory_mib or DEFAULT.memory_mib
        memory_mib = at_home_mib if share_mib is None else min(at_home_mib, share_mib)
        found[wanted.name] = Size(cpus=_cpus(wanted, servers, facts), memory_mib=memory_mib)
    return found


def _named(plan: Plan, wanted: PlanServer, facts: SiteFacts) -> Size:
    size = facts.sizes.get(wanted.size)
    if size is None:
        known = ", ".join([AUTOMATIC, *sorted(facts.sizes)])
        raise UsageError(
            f"plan {plan.name}: site {facts.name} has no size {wanted.size!r} for {wanted.name}", f"known are {known}"
        )
    return size


def _cpus(wanted: PlanServer, servers: Mapping[str, Server], facts: SiteFacts) -> int:
    if wanted.cpus is not None:
        return wanted.cpus
    at_home = servers[wanted.name].cpus or DEFAULT.cpus
    return at_home if facts.cpus is None else min(at_home, facts.cpus)


def addresses(plan: Plan, kind: RunKind, servers: Mapping[str, Server]) -> dict[str, str]:
    """By server, with prefix length, of those that get one of their own. Raises UsageError: unknown, or used twice."""
    found: dict[str, str] = {}
    used: dict[str, str] = {}
    for wanted in plan.servers:
        address = wanted.addresses.get(kind.value, DHCP)
        if address == DHCP:
            continue
        if address == SAME:
            at_home = servers[wanted.name].address
            if at_home is None:
                raise UsageError(
                    f"plan {plan.name}: {wanted.name} is to keep its address, and its inventory does not tell it",
                    "write the address into the plan, like 10.0.0.7/24",
                )
            address = at_home
        ip = str(ipaddress.ip_interface(address).ip)
        if ip in used:
            raise UsageError(
                f"plan {plan.name}: {used[ip]} and {wanted.name} would both have the address {ip}",
                "give one of them another: address: {" + f"{kind.value}: ..." + "}",
            )
        used[ip] = wanted.name
        found[wanted.name] = address
    return found
