"""From YAML to a plan; what cannot be is refused with its line and the way out."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from datetime import datetime

from recovery.gates import CommandGate, ConsoleGate, Gate, HeartbeatGate, HttpGate, TcpGate
from recovery.plans.fields import DAY_SECONDS, Field, read_fields
from recovery.plans.model import (
    AUTOMATIC,
    DEFAULT_GATE_SECONDS,
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

_PLAN_NAME = re.compile(r"[\w.-]{1,100}")
_PROGRAM = re.compile(r"[\w-][\w.-]{0,99}")
_HTTP_PATH = re.compile(r"/[!-~]*")
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
        raise fields["plan"].error(f"{name!r} cannot be a plan's name", "use letters, digits, dot, dash, underscore")
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
        self.addresses: set[tuple[str, str]] = set()


def _read_groups(document: Field) -> tuple[Group, ...]:
    entries = document.items()
    taken = _Taken()
    groups: list[Group] = []
    for entry in entries:
        group = _read_group(entry, taken)
        if group.name is not None and group.name in {other.name for other in groups}:
            raise entry.error(f"there is a group {group.name!r} already", _OTHER_NAME)
        groups.append(group)
    names = {group.name for group in groups if group.name is not None}
    for entry, group in zip(entries, groups, strict=True):
        unknown = [name for name in group.after or () if name not in names]
        if unknown:
            known = ", ".join(sorted(names)) or "none"
            raise entry.error(f"there is no group {unknown[0]!r} to come after", f"the plan's groups are: {known}")
    waits = depends_on(groups)
    stuck = [at for at in range(len(groups)) if at not in in_order(waits)]
    if stuck:
        names_stuck = ", ".join(groups[at].name or f"number {at + 1}" for at in stuck)
        raise entries[stuck[0]].error(
            f"these groups wait for each other, so none could ever begin: {names_stuck}", "change an `after:`"
        )
    return tuple(groups)


def _read_group(document: Field, taken: _Taken) -> Group:
    fields = document.mapping(required=("servers",), optional=("name", "after", "wait_seconds", "pre", "post"))
    return Group(
        servers=tuple(_read_server(entry, taken) for entry in fields["servers"].items()),
        name=fields["name"].text() if "name" in fields else None,
        after=tuple(entry.text() for entry in fields["after"].items(empty=True)) if "after" in fields else None,
        wait_seconds=fields["wait_seconds"].seconds() if "wait_seconds" in fields else 0.0,
        pre=_read_scripts(fields, "pre"),
        post=_read_scripts(fields, "post"),
    )


def _read_server(document: Field, taken: _Taken) -> PlanServer:
    fields = document.mapping(
        required=("name",),
        optional=("size", "cpus", "memory_mib", "address", "ports", "gates", "repair", "on_failure"),
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
        addresses=_read_addresses(fields["address"], taken) if "address" in fields else {},
        gates=tuple(_read_gate(entry) for entry in fields["gates"].items(empty=True)) if "gates" in fields else (),
        repair=fields["repair"].yes() if "repair" in fields else True,
        on_failure=_read_rule(fields),
    )


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


def _read_addresses(document: Field, taken: _Taken) -> dict[str, str]:
    """`address: X` is for both modes, `address: {drill: X, failover: Y}` for each."""
    by_mode = document.mapping(optional=MODES) if document.is_mapping else dict.fromkeys(MODES, document)
    return {mode: _read_address(field, mode, taken) for mode, field in by_mode.items()}


def _read_address(document: Field, mode: str, taken: _Taken) -> str:
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
    if (mode, str(interface.ip)) in taken.addresses:
        raise document.error(f"address {interface.ip} is used twice", "give each server an address of its own")
    taken.addresses.add((mode, str(interface.ip)))
    return str(interface)


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
    if not _PROGRAM.fullmatch(argv[0]):
        hint = "put the program into the service's scripts folder and name it, without a path"
        raise words[0].error(f"{argv[0]!r} is no program's name", hint)
    return Script(
        argv=argv,
        in_drills=fields["in_drills"].yes() if "in_drills" in fields else False,
        timeout_seconds=_limit(fields, DEFAULT_SCRIPT_SECONDS),
        on_failure=_read_rule(fields),
    )


def _read_gate(document: Field) -> Gate:
    kinds = document.mapping(optional=tuple(_GATES))
    if len(kinds) != 1:
        raise document.error(f"a gate is one of {', '.join(_GATES)}", "write each gate as its own list entry")
    ((kind, fields),) = kinds.items()
    return _GATES[kind](fields)


def _read_http(document: Field) -> Gate:
    fields = document.mapping(required=("port",), optional=("path", "status", "contains", "timeout_seconds"))
    path = fields["path"].text() if "path" in fields else "/"
    if not _HTTP_PATH.fullmatch(path):
        raise fields["path"].error(f"{path!r} is no path", "begin with /, and write spaces and umlauts as %XX")
    return HttpGate(
        port=fields["port"].integer(1, 65_535),
        path=path,
        status=fields["status"].integer(100, 599) if "status" in fields else 200,
        contains=fields["contains"].text() if "contains" in fields else None,
        timeout_seconds=_limit(fields, DEFAULT_GATE_SECONDS),
    )


def _read_tcp(document: Field) -> Gate:
    fields = document.mapping(required=("port",), optional=("timeout_seconds",))
    return TcpGate(port=fields["port"].integer(1, 65_535), timeout_seconds=_limit(fields, DEFAULT_GATE_SECONDS))


def _read_console(document: Field) -> Gate:
    fields = document.mapping(required=("text",), optional=("timeout_seconds",))
    return ConsoleGate(text=fields["text"].text(), timeout_seconds=_limit(fields, DEFAULT_GATE_SECONDS))


def _read_heartbeat(document: Field) -> Gate:
    fields = document.mapping(optional=("timeout_seconds",))
    return HeartbeatGate(timeout_seconds=_limit(fields, DEFAULT_GATE_SECONDS))


def _read_command(document: Field) -> Gate:
    fields = document.mapping(required=("name",), optional=("timeout_seconds",))
    name = fields["name"].text()
    if not _PROGRAM.fullmatch(name):
        hint = "it is a name that the server's own agent knows: understudy-agent allow NAME -- COMMAND"
        raise fields["name"].error(f"{name!r} is no command's name", hint)
    return CommandGate(name=name, timeout_seconds=_limit(fields, DEFAULT_GATE_SECONDS))


_GATES: dict[str, Callable[[Field], Gate]] = {
    "http": _read_http,
    "tcp": _read_tcp,
    "console": _read_console,
    "heartbeat": _read_heartbeat,
    "command": _read_command,
}


def _limit(fields: Mapping[str, Field], default_seconds: float) -> float:
    return fields["timeout_seconds"].seconds() if "timeout_seconds" in fields else default_seconds
