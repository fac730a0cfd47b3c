"""Health gates: what must be true of an instance before a run goes on.

A gate is data, and `check` looks once: the time limit and the waiting belong to whoever asks.
"""

from __future__ import annotations

import dataclasses
import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from agent.protocol.errors import Conflict, GateFailed, NotFound, SiteError
from recovery.sites.contract import Instance, InstanceState, Site

CHECK_SECONDS = 5.0
TCP_SILENCE_SECONDS = 1.0
TAKEN_SECONDS = 1.0
TAKEN_LOOK_SECONDS = 0.05
MAX_BODY_BYTES = 1 << 20
CONSOLE_BYTES = 1 << 20  # more than a boot writes, so that the text is found although the service was away meanwhile
CONSOLE_LINES = 20
CONSOLE_LINE_CHARACTERS = 200


_NOT_TAKEN = "the guest does not take connections yet"


@dataclass(frozen=True, slots=True)
class GateResult:
    """`seen` says what this look saw, in words for an operator."""

    held: bool
    seen: str


class GuestAgent(Protocol):
    """What the agent inside the instance says, as far as the service heard of it."""

    def heartbeat(self) -> GateResult:
        """Did it make contact since the instance has the server's identity?"""
        ...

    def command(self, name: str) -> GateResult:
        """Did it run the command of that name with success? Asks it to, the first time and after each failure."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpGate:
    """A GET of `path` at the guest's `port` answers `status`, and the body contains `contains` (None: whatever).

    `host` is the name that is asked for, where several live at one port; None: the address."""

    port: int
    path: str = "/"
    status: int = 200
    contains: str | None = None
    host: str | None = None
    timeout_seconds: float = 300.0

    def __str__(self) -> str:
        body = f" containing {self.contains!r}" if self.contains is not None else ""
        name = f" of {self.host}" if self.host is not None else ""
        return f"HTTP {self.status}{body} from port {self.port} {self.path}{name}"

    def check(self, site: Site, instance: Instance, agent: GuestAgent) -> GateResult:
        host, port = instance.addresses[self.port]
        url = f"http://{host}:{port}{self.path}"
        try:
            status, body = _get(host, port, self.path, self.host, lambda: _taken(site, instance, self.port))
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
class TcpGate:
    """Something accepts connections at the guest's `port`, and does not hang up at once."""

    port: int
    timeout_seconds: float = 300.0

    def __str__(self) -> str:
        return f"a connection to port {self.port}"

    def check(self, site: Site, instance: Instance, agent: GuestAgent) -> GateResult:
        host, port = instance.addresses[self.port]
        where = f"{host}:{port}"
        try:
            with socket.create_connection((host, port), timeout=CHECK_SECONDS) as connection:
                # A forwarder accepts in the guest's place, and hangs up when the guest does not take the connection.
                connection.settimeout(TCP_SILENCE_SECONDS)
                try:
                    if connection.recv(1) == b"":
                        return GateResult(False, f"{where} hung up at once")
                except TimeoutError:
                    if _taken(site, instance, self.port):
                        return GateResult(True, f"{where} took the connection")
                    return GateResult(False, f"{where}: {_NOT_TAKEN}")
        except OSError as error:
            return GateResult(False, f"{where}: {str(error) or type(error).__name__}")
        return GateResult(True, f"{where} took the connection and spoke")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsoleGate:
    """The instance has written `text` to its console."""

    text: str
    timeout_seconds: float = 300.0

    def __str__(self) -> str:
        return f"{self.text!r} on the console"

    def check(self, site: Site, instance: Instance, agent: GuestAgent) -> GateResult:
        console = site.console(instance.instance_id, CONSOLE_BYTES)
        if self.text in console:
            return GateResult(True, f"the console shows {self.text!r}")
        lines = last_lines(console)
        return GateResult(False, f"the console's last line is {lines[-1]!r}" if lines else "the console is empty")


@dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatGate:
    """The agent in the instance has made contact with the service."""

    timeout_seconds: float = 300.0

    def __str__(self) -> str:
        return "its agent's heartbeat"

    def check(self, site: Site, instance: Instance, agent: GuestAgent) -> GateResult:
        return agent.heartbeat()


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandGate:
    """A command that the agent in the instance knows by `name` ends with exit status 0."""

    name: str
    timeout_seconds: float = 300.0

    def __str__(self) -> str:
        return f"success of the command {self.name} in the guest"

    def check(self, site: Site, instance: Instance, agent: GuestAgent) -> GateResult:
        return agent.command(self.name)


Gate = HttpGate | TcpGate | ConsoleGate | HeartbeatGate | CommandGate

_KINDS: dict[str, type[Gate]] = {
    "http": HttpGate,
    "tcp": TcpGate,
    "console": ConsoleGate,
    "heartbeat": HeartbeatGate,
    "command": CommandGate,
}


def gate_to_json(gate: Gate) -> dict[str, Any]:
    """As a plan writes it: `{"http": {...}}`, `{"console": {...}}`."""
    fields = {name: value for name, value in dataclasses.asdict(gate).items() if value is not None}
    return {next(kind for kind, cls in _KINDS.items() if isinstance(gate, cls)): fields}


def gate_from_json(document: Mapping[str, Any]) -> Gate:
    """The inverse of gate_to_json."""
    ((kind, fields),) = document.items()
    return _KINDS[kind](**fields)


def ports_of(gates: Iterable[Gate]) -> list[int]:
    """The guest's ports that these gates look at."""
    return [gate.port for gate in gates if isinstance(gate, HttpGate | TcpGate)]


def asks_agent(gate: Gate) -> bool:
    """Does it need the guest's agent? It reaches no service from an isolated network."""
    return isinstance(gate, HeartbeatGate | CommandGate)


def check_gate(gate: Gate, site: Site, instance_id: str, agent: GuestAgent) -> GateResult:
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
    for port in ports_of([gate]):
        if port not in instance.addresses:
            return GateResult(False, f"{site.name} gives no address for guest port {port}")
    return gate.check(site, instance, agent)


def console_end(site: Site, instance_id: str) -> str:
    """The console's last lines, made to be appended to an error's message."""
    lines = last_lines(site.console(instance_id))
    if not lines:
        return "; its console is empty"
    return "\n".join(["", "the end of its console:", *(f"  | {line}" for line in lines), ""])


def last_lines(console: str) -> list[str]:
    """The console's last lines with something on them."""
    lines = [line.rstrip()[:CONSOLE_LINE_CHARACTERS] for line in console.splitlines()]
    return [line for line in lines if line][-CONSOLE_LINES:]


def _taken(site: Site, instance: Instance, port: int) -> bool:
    """Has the guest taken the connection just made to it? Given TAKEN_SECONDS: one that was made before the guest was
    up is tried again by the network after so many seconds that a new one is answered sooner."""
    deadline = time.monotonic() + TAKEN_SECONDS
    while True:
        try:
            if site.holds_connection(instance.instance_id, port):
                return True
        except (NotFound, Conflict, SiteError):
            return False  # it has just died: the next look says so
        if time.monotonic() >= deadline:
            return False
        time.sleep(TAKEN_LOOK_SECONDS)


def _get(host: str, port: int, path: str, name: str | None, taken: Callable[[], bool]) -> tuple[int, bytes]:
    """(status, start of the body); `name` as HttpGate.host, `taken` tells whether the guest holds the connection.
    Raises OSError, HTTPException; takes CHECK_SECONDS at most, and a little."""
    deadline = time.monotonic() + CHECK_SECONDS
    connection = http.client.HTTPConnection(host, port, timeout=CHECK_SECONDS)
    try:
        connection.connect()
        if not taken():
            raise ConnectionError(_NOT_TAKEN)
        # The socket's own time limit starts anew with every byte, so a guest that dribbles could hold the run for
        # ever. Shutting the socket down from outside ends whatever read is under way.
        cut = threading.Timer(max(0.0, deadline - time.monotonic()), _shut_down, [connection.sock])
        cut.daemon = True
        cut.start()
        try:
            headers = {"Connection": "close", "User-Agent": "understudy-gate", **({"Host": name} if name else {})}
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            body = response.read(MAX_BODY_BYTES)
        finally:
            cut.cancel()
    finally:
        connection.close()
    if time.monotonic() >= deadline:  # http.client takes a cut for the end of the headers
        raise TimeoutError(f"no whole answer within {CHECK_SECONDS:g} s")
    return response.status, body


def _shut_down(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # closed in the meantime: the answer had come
