"""From YAML to a plan; what cannot be is refused with its line and the way out."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from datetime import datetime

from recovery.plans.fields import DAY_SECONDS, Field, read_fields
from recovery.plans.gate_reading import PROGRAM, limit, read_gate
from recovery.plans.model import (
    AUTOMATIC,
    DEFAULT_SCRIPT_SECONDS,
    DHCP,
    MODES,
    SAME,
    Caps,
    FailureRule,
    Group,
    Plan,
    PlanServer,
    Script,
    depends_on,
    in_order,
)
from recovery.points import LATEST, NEWEST_KINDS
from recovery.sites.contract import Devices

_PLAN_NAME = re.compile(r"\w[\w.-]{0,99}")
_OTHER_NAME = "give each group a name of its own, or none"


def parse_plan(text: str, source: str = "plan") -> Plan:
    """Read a plan. `source` is what errors call the text, a file's name. Raises UsageError naming line and field."""
    document = read_fields(text, source)
    fields = document.mapping(
        required=("plan", "groups"),
        optional=(
            "point",
            "rpo_seconds",
            "one_instant_within_seconds",
            "on_failure",
            "networks",
            "caps",
            "pre",
            "post",
        ),
    )
    name = fields["plan"].text()
    if not _PLAN_NAME.fullmatch(name):
        raise fields["plan"].error(
            f"{name!r} cannot be a plan's name", "use letters, digits, dot, dash, underscore; 100 at most"
        )
    return Plan(
        name=name,
        groups=_read_groups(fields["groups"]),
        point=_read_point(fields["point"]) if "point" in fields else LATEST,
        rpo_seconds=fields["rpo_seconds"].seconds(366 * DAY_SECONDS) if "rpo_seconds" in fields else None,
        one_instant_seconds=(
            fields["one_instant_within_seconds"].seconds(366 * DAY_SECONDS)
            if "one_instant_within_seconds" in fields
            else None
        ),
        on_failure=_read_rule(fields) or FailureRule(),
        networks=(
            {mode: field.text() for mode, field in fields["networks"].mapping(optional=MODES).items()}
            if "networks" in fields
            else {}
        ),
        caps=_read_caps(fields["caps"]) if "caps" in fields else Caps(),
        pre=_read_scripts(fields, "pre"),
        post=_read_scripts(fields, "post"),
    )


class _Taken:
    """What the plan has used so far, so that nothing is used twice."""

    def __init__(self) -> None:
        self.servers: set[str] = set()
        self.site_ports: set[int] = set()
        self.addresses: dict[tuple[str, str], str] = {}
        """By mode and address: the server that has it."""
        self.earlier: list[Field] = []
        """Names of groups that others come after; they may be written further down."""


def _read_groups(document: Field) -> tuple[Group, ...]:
    entries = document.items()
    taken = _Taken()
    groups: list[Group] = []
    names: set[str] = set()
    for entry in entries:
        group = _read_group(entry, taken)
        if group.name in names:
            raise entry.error(f"there is a group {group.name!r} already", _OTHER_NAME)
        if group.name is not None:
            names.add(group.name)
        groups.append(group)
    for earlier in taken.earlier:
        if earlier.text() not in names:
            known = ", ".join(sorted(names)) or "none with a name"
            raise earlier.error(
                f"there is no group {earlier.text()!r} to come after", f"the plan's groups are: {known}"
            )
    stuck = sorted({*range(len(groups))} - {*in_order(depends_on(groups))})
    if stuck:
        names_stuck = ", ".join(groups[at].name or f"number {at + 1}" for at in stuck)
        raise entries[stuck[0]].error(
            f"these groups wait for each other, so none could ever begin: {names_stuck}", "change an `after:`"
        )
    return tuple(groups)


def _read_group(document: Field, taken: _Taken) -> Group:
    fields = document.mapping(required=("servers",), optional=("name", "after", "wait_seconds", "pre", "post"))
    after = fields["after"].items(empty=True) if "after" in fields else None
    taken.earlier += after or []
    return Group(
        servers=tuple(_read_server(entry, taken) for entry in fields["servers"].items()),
        name=fields["name"].text() if "name" in fields else None,
        after=None if after is None else tuple(entry.text() for entry in after),
        wait_seconds=fields["wait_seconds"].seconds(zero=True) if "wait_seconds" in fields else 0.0,
        pre=_read_scripts(fields, "pre"),
        post=_read_scripts(fields, "post"),
    )


def _read_server(document: Field, taken: _Taken) -> PlanServer:
    fields = document.mapping(
        required=("name",),
        optional=("size", "cpus", "memory_mib", "address", "ports", "gates", "repair", "devices", "on_failure"),
    )
    name = fields["name"].text()
    if name in taken.servers:
        raise document.error(f"server {name!r} is in the plan already", "name each server once")
    taken.servers.add(name)
    if "size" in fields and ("cpus" in fields or "memory_mib" in fields):
        raise fields["size"].error("says the same as cpus and memory_mib", "keep one of the two")
    return PlanServer(
        name=name,
        size=fields["size"].text() if "size" in fields else AUTOMATIC,
        cpus=fields["cpus"].integer(1, 1_024) if "cpus" in fields else None,
        memory_mib=fields["memory_mib"].integer(64, 1 << 25) if "memory_mib" in fields else None,
        ports=_read_ports(fields["ports"], taken) if "ports" in fields else {},
        addresses=_read_addresses(fields["address"], name, taken) if "address" in fields else {},
        gates=tuple(read_gate(entry) for entry in fields["gates"].items(empty=True)) if "gates" in fields else (),
        repair=fields["repair"].yes() if "repair" in fields else True,
        devices=_read_devices(fields["devices"]) if "devices" in fields else AUTOMATIC,
        on_failure=_read_rule(fields),
    )


def _read_devices(document: Field) -> str:
    text = document.text()
    if text not in (AUTOMATIC, *Devices):
        raise document.error(f"{text!r} are no devices", f"use {AUTOMATIC}, {' or '.join(Devices)}")
    return text


def _read_ports(document: Field, taken: _Taken) -> dict[int, int]:
    ports: dict[int, int] = {}
    for guest, site in document.pairs():
        port = site.integer(0, 65_535)
        if port in taken.site_ports:
            raise site.error(f"port {port} at the site is used twice", "use 0 to let the site choose")
        if port:
            taken.site_ports.add(port)
        ports[guest.integer(1, 65_535)] = port
    return ports


def _read_addresses(document: Field, server: str, taken: _Taken) -> dict[str, str]:
    """`address: X` is for both modes, `address: {drill: X, failover: Y}` for each."""
    by_mode = document.mapping(optional=MODES) if document.is_mapping else dict.fromkeys(MODES, document)
    return {mode: _read_address(field, mode, server, taken) for mode, field in by_mode.items()}


def _read_address(document: Field, mode: str, server: str, taken: _Taken) -> str:
    text = document.text()
    if text in (DHCP, SAME):
        return text
    hint = f"use {DHCP}, {SAME} (as at home), or an address with its prefix length, like 10.0.0.7/24"
    try:
        interface = ipaddress.ip_interface(text)
    except ValueError:
        raise document.error(f"{text!r} is no address", hint) from None
    if "/" not in text:
        raise document.error(f"{text!r} has no prefix length", hint)
    if _is_nobodys(interface):
        raise document.error(f"{text!r} is an address that no server can have", hint)
    holder = taken.addresses.setdefault((mode, str(interface.ip)), server)
    if holder != server:
        raise document.error(
            f"address {interface.ip} is used twice, by {holder} too", "give each server an address of its own"
        )
    return str(interface)


def _is_nobodys(interface: ipaddress.IPv4Interface | ipaddress.IPv6Interface) -> bool:
    """The network's own address and its broadcast, and what means something else than a machine in a network."""
    ip, network = interface.ip, interface.network
    if ip.is_unspecified or ip.is_loopback or ip.is_multicast:
        return True
    ends = (network.network_address, network.broadcast_address)
    return ip.version == 4 and network.prefixlen < 31 and ip in ends


def _read_point(document: Field) -> str:
    text = document.text()
    if text not in NEWEST_KINDS:
        try:
            datetime.fromisoformat(text)
        except ValueError:
            hint = f"use {', '.join(NEWEST_KINDS)}, or a time in quotes, like '2026-01-31T14:30:00Z'"
            raise document.error(f"{text!r} says no point", hint) from None
    return text


def _read_rule(fields: Mapping[str, Field]) -> FailureRule | None:
    if "on_failure" not in fields:
        return None
    text = fields["on_failure"].text()
    rule = FailureRule.parse(text)
    if rule is None:
        hint = "use stop, continue, retry N, or: retry N, then continue"
        raise fields["on_failure"].error(f"{text!r} is no rule", hint)
    return rule


def _read_caps(document: Field) -> Caps:
    fields = document.mapping(optional=("instances", "price_per_hour"))
    return Caps(
        instances=fields["instances"].integer(1, 1_000_000) if "instances" in fields else None,
        price_per_hour=fields["price_per_hour"].amount(1e9) if "price_per_hour" in fields else None,
    )


def _read_scripts(owner: Mapping[str, Field], name: str) -> tuple[Script, ...]:
    return tuple(_read_script(entry) for entry in owner[name].items(empty=True)) if name in owner else ()


def _read_script(document: Field) -> Script:
    fields = document.mapping(required=("run",), optional=("in_drills", "timeout_seconds", "on_failure"))
    words = fields["run"].items()
    argv = tuple(word.text() for word in words)
    if not PROGRAM.fullmatch(argv[0]):
        hint = "put the program into the service's scripts folder and name it, without a path"
        raise words[0].error(f"{argv[0]!r} is no program's name", hint)
    return Script(
        argv=argv,
        in_drills=fields["in_drills"].yes() if "in_drills" in fields else False,
        timeout_seconds=limit(fields, DEFAULT_SCRIPT_SECONDS),
        on_failure=_read_rule(fields),
    )
