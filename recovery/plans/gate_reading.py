"""Gates as a plan writes them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from recovery.gates import CommandGate, ConsoleGate, Gate, HeartbeatGate, HttpGate, TcpGate
from recovery.plans.fields import Field
from recovery.plans.model import DEFAULT_GATE_SECONDS

PROGRAM = re.compile(r"[\w-][\w.-]{0,99}")
"""A name without a path."""
_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}(:\d{1,5})?")
_HTTP_PATH = re.compile(r"/[!-~]*")


def read_gate(document: Field) -> Gate:
    kinds = document.mapping(optional=tuple(_GATES))
    if len(kinds) != 1:
        raise document.error(f"a gate is one of {', '.join(_GATES)}", "write each gate as its own list entry")
    ((kind, fields),) = kinds.items()
    return _GATES[kind](fields)


def _read_http(document: Field) -> Gate:
    fields = document.mapping(required=("port",), optional=("path", "host", "status", "contains", "timeout_seconds"))
    path = fields["path"].text() if "path" in fields else "/"
    if not _HTTP_PATH.fullmatch(path):
        raise fields["path"].error(f"{path!r} is no path", "begin with /, and write spaces and umlauts as %XX")
    host = fields["host"].text() if "host" in fields else None
    if host is not None and not _HOST.fullmatch(host):
        raise fields["host"].error(f"{host!r} is no host's name", "like shop.example.com")
    return HttpGate(
        port=fields["port"].integer(1, 65_535),
        path=path,
        host=host,
        status=fields["status"].integer(100, 599) if "status" in fields else 200,
        contains=fields["contains"].text() if "contains" in fields else None,
        timeout_seconds=limit(fields, DEFAULT_GATE_SECONDS),
    )


def _read_tcp(document: Field) -> Gate:
    fields = document.mapping(required=("port",), optional=("timeout_seconds",))
    return TcpGate(port=fields["port"].integer(1, 65_535), timeout_seconds=limit(fields, DEFAULT_GATE_SECONDS))


def _read_console(document: Field) -> Gate:
    fields = document.mapping(required=("text",), optional=("timeout_seconds",))
    return ConsoleGate(text=fields["text"].text(), timeout_seconds=limit(fields, DEFAULT_GATE_SECONDS))


def _read_heartbeat(document: Field) -> Gate:
    fields = document.mapping(optional=("timeout_seconds",))
    return HeartbeatGate(timeout_seconds=limit(fields, DEFAULT_GATE_SECONDS))


def _read_command(document: Field) -> Gate:
    fields = document.mapping(required=("name",), optional=("timeout_seconds",))
    name = fields["name"].text()
    if not PROGRAM.fullmatch(name):
        hint = "it is a name that the server's own agent knows: understudy-agent allow NAME -- COMMAND"
        raise fields["name"].error(f"{name!r} is no command's name", hint)
    return CommandGate(name=name, timeout_seconds=limit(fields, DEFAULT_GATE_SECONDS))


_GATES: dict[str, Callable[[Field], Gate]] = {
    "http": _read_http,
    "tcp": _read_tcp,
    "console": _read_console,
    "heartbeat": _read_heartbeat,
    "command": _read_command,
}


def limit(fields: Mapping[str, Field], default_seconds: float) -> float:
    return fields["timeout_seconds"].seconds() if "timeout_seconds" in fields else default_seconds
