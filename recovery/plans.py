"""Recovery plans: ordered groups of servers with health gates between them. Read from and written as YAML.

plan: shop
groups:
  - name: databases          # optional
    servers:
      - name: db01
        gates:
          - console: {text: "login:"}
  - servers:
      - name: web01
        cpus: 2
        memory_mib: 768
        ports: {8000: 0}     # guest port: port at the site, 0 = any
        gates:
          - http: {port: 8000, path: /health, status: 200, contains: "ok", timeout_seconds: 300}
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from agent.protocol.errors import UsageError
from recovery.gates import ConsoleGate, Gate, HttpGate, gate_to_json

DEFAULT_CPUS = 2
DEFAULT_MEMORY_MIB = 1024
DEFAULT_GATE_SECONDS = 300.0
MAX_GATE_SECONDS = 86_400.0
MAX_TEXT_CHARACTERS = 256 * 1024

_PLAN_NAME = re.compile(r"[\w.-]{1,100}")
_HTTP_PATH = re.compile(r"/[!-~]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanServer:
    """How one server is booted, and what must hold before the next group starts.

    `ports`: guest TCP port -> port at the site, 0 for any; a gate's port that is not named here counts as 0."""

    name: str
    cpus: int = DEFAULT_CPUS
    memory_mib: int = DEFAULT_MEMORY_MIB
    ports: Mapping[int, int] = field(default_factory=dict)
    gates: tuple[Gate, ...] = ()

    @property
    def all_ports(self) -> dict[int, int]:
        wanted = {gate.port: 0 for gate in self.gates if isinstance(gate, HttpGate)}
        return wanted | dict(self.ports)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Servers that are booted together; the next group waits for all their gates."""

    servers: tuple[PlanServer, ...]
    name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    name: str
    groups: tuple[Group, ...]

    @property
    def servers(self) -> tuple[PlanServer, ...]:
        return tuple(server for group in self.groups for server in group.servers)


def default_plan(server: str) -> Plan:
    """What a server without a written plan gets: boot it, and wait for its login prompt."""
    gate = ConsoleGate(text="login:", timeout_seconds=DEFAULT_GATE_SECONDS)
    return Plan(name=server, groups=(Group(servers=(PlanServer(name=server, gates=(gate,)),)),))


def dump_plan(plan: Plan) -> str:
    """The plan as YAML text that parse_plan reads back to an equal plan."""
    groups = []
    for group in plan.groups:
        named = {"name": group.name} if group.name is not None else {}
        groups.append(named | {"servers": [_server_to_json(server) for server in group.servers]})
    return yaml.safe_dump({"plan": plan.name, "groups": groups}, sort_keys=False, allow_unicode=True)


def _server_to_json(server: PlanServer) -> dict[str, Any]:
    document: dict[str, Any] = {"name": server.name, "cpus": server.cpus, "memory_mib": server.memory_mib}
    if server.ports:
        document["ports"] = dict(server.ports)
    document["gates"] = [gate_to_json(gate) for gate in server.gates]
    return document


def parse_plan(text: str, source: str = "plan") -> Plan:
    """Read a plan. `source` is what errors call the text, a file's name. Raises UsageError naming line and field."""
    if len(text) > MAX_TEXT_CHARACTERS:
        raise UsageError(f"{source}: longer than {MAX_TEXT_CHARACTERS} characters", "a plan is a small YAML text")
    try:
        root = yaml.compose(text, yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UsageError(f"{source}{line}: this is not YAML: {error.problem}", _INDENT_HINT) from error
    except (yaml.YAMLError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else "nested too deeply"
        raise UsageError(f"{source}: this is not YAML: {reason}", _INDENT_HINT) from error
    if root is None:
        raise UsageError(f"{source}: is empty", "begin with `plan: NAME` and `groups:`")
    return _read_plan(_Field(root, source, ""))


_INDENT_HINT = "check quotes, colons and indentation there"


def _read_plan(document: _Field) -> Plan:
    fields = document.mapping(required=("plan", "groups"))
    name = fields["plan"].text()
    if not _PLAN_NAME.fullmatch(name):
        raise fields["plan"].error(f"{name!r} cannot be a plan's name", "use letters, digits, dot, dash, underscore")
    groups: list[Group] = []
    servers: set[str] = set()
    site_ports: set[int] = set()
    for entry in fields["groups"].items():
        group = _read_group(entry, servers, site_ports)
        if group.name is not None and group.name in {other.name for other in groups}:
            raise entry.error(f"there is a group {group.name!r} already", "give each group a name of its own, or none")
        groups.append(group)
    return Plan(name=name, groups=tuple(groups))


def _read_group(document: _Field, seen: set[str], site_ports: set[int]) -> Group:
    """`seen` and `site_ports` gather what the plan has used so far, so that nothing is used twice."""
    fields = document.mapping(required=("servers",), optional=("name",))
    servers = []
    for entry in fields["servers"].items():
        server = _read_server(entry)
        if server.name in seen:
            raise entry.error(f"server {server.name!r} is in the plan already", "name each server once")
        taken = sorted(port for port in server.ports.values() if port in site_ports)
        if taken:
            raise entry.error(f"port {taken[0]} at the site is used twice", "use 0 to let the site choose")
        seen.add(server.name)
        site_ports.update(port for port in server.ports.values() if port)
        servers.append(server)
    return Group(name=fields["name"].text() if "name" in fields else None, servers=tuple(servers))


def _read_server(document: _Field) -> PlanServer:
    fields = document.mapping(required=("name",), optional=("cpus", "memory_mib", "ports", "gates"))
    ports: dict[int, int] = {}
    for guest, site in fields["ports"].pairs() if "ports" in fields else ():
        port = site.integer(0, 65_535)
        if port and port in ports.values():
            raise site.error(f"port {port} at the site is used twice", "use 0 to let the site choose")
        ports[guest.integer(1, 65_535)] = port
    return PlanServer(
        name=fields["name"].text(),
        cpus=fields["cpus"].integer(1, 1_024) if "cpus" in fields else DEFAULT_CPUS,
        memory_mib=fields["memory_mib"].integer(64, 1 << 25) if "memory_mib" in fields else DEFAULT_MEMORY_MIB,
        ports=ports,
        gates=tuple(_read_gate(entry) for entry in fields["gates"].items(empty=True)) if "gates" in fields else (),
    )


def _read_gate(document: _Field) -> Gate:
    kinds = document.mapping(optional=("http", "console"))
    if len(kinds) != 1:
        raise document.error("a gate is one of http, console", "write each gate as its own list entry")
    if "console" in kinds:
        fields = kinds["console"].mapping(required=("text",), optional=("timeout_seconds",))
        return ConsoleGate(text=fields["text"].text(), timeout_seconds=_gate_seconds(fields))
    fields = kinds["http"].mapping(required=("port",), optional=("path", "status", "contains", "timeout_seconds"))
    path = fields["path"].text() if "path" in fields else "/"
    if not _HTTP_PATH.fullmatch(path):
        raise fields["path"].error(f"{path!r} is no path", "begin with /, and write spaces and umlauts as %XX")
    return HttpGate(
        port=fields["port"].integer(1, 65_535),
        path=path,
        status=fields["status"].integer(100, 599) if "status" in fields else 200,
        contains=fields["contains"].text() if "contains" in fields else None,
        timeout_seconds=_gate_seconds(fields),
    )


def _gate_seconds(fields: Mapping[str, _Field]) -> float:
    return fields["timeout_seconds"].seconds() if "timeout_seconds" in fields else DEFAULT_GATE_SECONDS


_KINDS = {"str": "a text", "int": "a whole number", "float": "a number", "bool": "yes or no", "null": "nothing"}


class _Field:
    """A node of the YAML text with its place, read as one type or refused."""

    def __init__(self, node: yaml.Node, source: str, path: str) -> None:
        self._node = node
        self._source = source
        self._path = path

    def error(self, message: str, hint: str) -> UsageError:
        place = f"{self._source}, line {self._node.start_mark.line + 1}"
        return UsageError(f"{place}: {self._path}: {message}" if self._path else f"{place}: {message}", hint)

    def mapping(self, required: Collection[str] = (), optional: Collection[str] = ()) -> dict[str, _Field]:
        known = [*required, *optional]
        fields: dict[str, _Field] = {}
        for key, value in self.pairs():
            name = key.text()
            if name not in known:
                raise key.error(f"there is no field {name!r} here", f"known are {', '.join(known)}")
            fields[name] = value
        missing = [name for name in required if name not in fields]
        if missing:
            raise self.error(f"{missing[0]!r} is missing", f"add `{missing[0]}: ...`")
        return fields

    def pairs(self) -> list[tuple[_Field, _Field]]:
        if not isinstance(self._node, yaml.MappingNode):
            raise self._wrong("fields (`name: value`)")
        pairs: list[tuple[_Field, _Field]] = []
        seen: set[str] = set()
        for key, value in self._node.value:
            name = str(key.value)
            if name in seen:
                raise _Field(key, self._source, self._path).error(f"{name!r} is given twice", "keep one of the two")
            seen.add(name)
            path = f"{self._path}.{name}" if self._path else name
            pairs.append((_Field(key, self._source, self._path), _Field(value, self._source, path)))
        return pairs

    def items(self, *, empty: bool = False) -> list[_Field]:
        if not isinstance(self._node, yaml.SequenceNode):
            raise self._wrong("a list (lines that begin with `- `)")
        if not self._node.value and not empty:
            raise self.error("is empty", "add at least one entry")
        return [_Field(node, self._source, f"{self._path}[{at}]") for at, node in enumerate(self._node.value)]

    def text(self) -> str:
        if self._kind() != "str":
            raise self._wrong("a text", "put it in quotes if it is one")
        value = str(self._node.value)
        if not value or not value.isprintable():
            raise self.error(
                f"{value!r} is not a usable text", "use at least one character, and none that is invisible"
            )
        return value

    def integer(self, low: int, high: int) -> int:
        if self._kind() != "int":
            raise self._wrong("a whole number")
        value = self._number()
        if not low <= value <= high:
            raise self.error(f"{self._node.value} is out of range", f"use {low} to {high}")
        return int(value)

    def seconds(self) -> float:
        if self._kind() not in ("int", "float"):
            raise self._wrong("a number of seconds")
        value = float(self._number())
        if not 0 < value <= MAX_GATE_SECONDS:  # also refuses not-a-number
            raise self.error(f"{self._node.value} is out of range", f"use up to {MAX_GATE_SECONDS:g} seconds")
        return value

    def _number(self) -> int | float:
        try:
            value = yaml.safe_load(str(self._node.value))
        except (ValueError, yaml.YAMLError):
            value = None
        if not isinstance(value, int | float):  # an explicit tag promised more than the text keeps
            raise self.error("this number cannot be read", "write it in plain digits")
        return value

    def _kind(self) -> str:
        return self._node.tag.rpartition(":")[2] if isinstance(self._node, yaml.ScalarNode) else ""

    def _wrong(self, wanted: str, hint: str = "see `understudy plan show` for a plan that is right") -> UsageError:
        if isinstance(self._node, yaml.MappingNode):
            found = "fields"
        elif isinstance(self._node, yaml.SequenceNode):
            found = "a list"
        else:
            found = _KINDS.get(self._kind(), "something else")
        return self.error(f"should be {wanted}, and is {found}", hint)
