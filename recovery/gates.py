"""Health gates: what must be true of an instance before a run goes on.

A gate is data, and `check` looks once: the time limit and the waiting belong to whoever asks.
"""

from __future__ import annotations

import dataclasses
import http.client
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agent.protocol.errors import GateFailed
from recovery.sites.contract import Instance, InstanceState, Site

HTTP_CHECK_SECONDS = 5.0
MAX_BODY_BYTES = 1 << 20
CONSOLE_BYTES = 1 << 20  # more than a boot writes, so that the text is found although the service was away meanwhile
CONSOLE_LINES = 20
CONSOLE_LINE_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class GateResult:
    """`seen` says what this look saw, in words for an operator."""

    held: bool
    seen: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpGate:
    """A GET of `path` at the guest's `port` answers `status`, and the body contains `contains` (None: whatever)."""

    port: int
    path: str = "/"
    status: int = 200
    contains: str | None = None
    timeout_seconds: float = 300.0

    def __str__(self) -> str:
        body = f" containing {self.contains!r}" if self.contains is not None else ""
        return f"HTTP {self.status}{body} from port {self.port} {self.path}"

    def check(self, site: Site, instance: Instance) -> GateResult:
        address = instance.addresses.get(self.port)
        if address is None:
            return GateResult(False, f"{site.name} gives no address for guest port {self.port}")
        url = f"http://{address[0]}:{address[1]}{self.path}"
        try:
            status, body = _get(*address, self.path)
        except (OSError, http.client.HTTPException) as error:
            # A guest that is not up yet refuses, resets, hangs or answers rubbish: all of it means "not yet".
            return GateResult(False, f"{url}: {str(error) or type(error).__name__}")
        if status != self.status:
            return GateResult(False, f"{url} answered {status}")
        if self.contains is not None and self.contains.encode() not in body:
            start = body[:80].decode(errors="replace")
            return GateResult(False, f"{url} answered {status} without {self.contains!r}: {start!r}")
        return GateResult(True, f"{url} answered {status}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsoleGate:
    """The instance has written `text` to its console."""

    text: str
    timeout_seconds: float = 300.0

    def __str__(self) -> str:
        return f"{self.text!r} on the console"

    def check(self, site: Site, instance: Instance) -> GateResult:
        console = site.console(instance.instance_id, CONSOLE_BYTES)
        if self.text in console:
            return GateResult(True, f"the console shows {self.text!r}")
        lines = _last_lines(console)
        return GateResult(False, f"the console's last line is {lines[-1]!r}" if lines else "the console is empty")


Gate = HttpGate | ConsoleGate


def gate_to_json(gate: Gate) -> dict[str, Any]:
    """As a plan writes it: `{"http": {...}}` or `{"console": {...}}`."""
    fields = {name: value for name, value in dataclasses.asdict(gate).items() if value is not None}
    return {"http" if isinstance(gate, HttpGate) else "console": fields}


def gate_from_json(document: Mapping[str, Any]) -> Gate:
    """The inverse of gate_to_json."""
    ((kind, fields),) = document.items()
    return HttpGate(**fields) if kind == "http" else ConsoleGate(**fields)


def check_gate(gate: Gate, site: Site, instance_id: str) -> GateResult:
    """Look once. Raises GateFailed when the instance does not run any more: no waiting will help."""
    instance = site.watch(instance_id)
    if instance.state is InstanceState.PENDING:
        return GateResult(False, f"instance {instance_id} is not up yet")
    if instance.state is not InstanceState.RUNNING:
        reason = f": {instance.detail}" if instance.detail else ""
        raise GateFailed(
            f"instance {instance_id} is {instance.state}{reason}, so {gate} will never come"
            + console_end(site, instance_id)
        )
    return gate.check(site, instance)


def console_end(site: Site, instance_id: str) -> str:
    """The console's last lines, made to be appended to an error's message."""
    lines = _last_lines(site.console(instance_id))
    if not lines:
        return "; its console is empty"
    return "\n".join(["; the end of its console:", *(f"  | {line}" for line in lines), ""])


def _last_lines(console: str) -> list[str]:
    lines = [line.rstrip()[:CONSOLE_LINE_CHARACTERS] for line in console.splitlines()]
    return [line for line in lines if line][-CONSOLE_LINES:]


def _get(host: str, port: int, path: str) -> tuple[int, bytes]:
    """(status, start of the body). Raises OSError, HTTPException; takes HTTP_CHECK_SECONDS at most, and a little."""
    deadline = time.monotonic() + HTTP_CHECK_SECONDS
    connection = http.client.HTTPConnection(host, port, timeout=HTTP_CHECK_SECONDS)
    try:
        connection.connect()
        # The socket's own time limit starts anew with every byte, so a guest that dribbles could hold the run for
        # ever. Shutting the socket down from outside ends whatever read is under way.
        cut = threading.Timer(max(0.0, deadline - time.monotonic()), _shut_down, [connection.sock])
        cut.daemon = True
        cut.start()
        try:
            connection.request("GET", path, headers={"Connection": "close", "User-Agent": "understudy-gate"})
            response = connection.getresponse()
            body = response.read(MAX_BODY_BYTES)
        finally:
            cut.cancel()
    finally:
        connection.close()
    if time.monotonic() >= deadline:  # http.client takes a cut for the end of the headers
        raise TimeoutError(f"no whole answer within {HTTP_CHECK_SECONDS:g} s")
    return response.status, body


def _shut_down(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # closed in the meantime: the answer had come
