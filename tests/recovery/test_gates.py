from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Callable, Iterator
from typing import cast

import pytest

import recovery.gates
from agent.protocol.errors import GateFailed
from recovery.gates import (
    CommandGate,
    ConsoleGate,
    Gate,
    GateResult,
    HeartbeatGate,
    HttpGate,
    TcpGate,
    check_gate,
    gate_from_json,
    gate_to_json,
)
from recovery.runs import RunKind, RunState
from recovery.sites.contract import Instance, InstanceState, Site
from tests.patience import PATIENCE_SECONDS
from tests.recovery.world import MemorySite, World


class SilentAgent:
    def heartbeat(self) -> GateResult:
        return GateResult(False, "no word")

    def command(self, name: str) -> GateResult:
        return GateResult(False, f"no word of {name}")


AGENT = SilentAgent()


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guests of these tests answer or hang up, however late."""
    monkeypatch.setattr(recovery.gates, "CHECK_SECONDS", PATIENCE_SECONDS)


class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        known = self.path == "/health" or self.headers["Host"] == "shop.example.com"
        self.send_response(200 if known else 503)
        self.end_headers()
        self.wfile.write(b'{"status": "ok"}')

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server_port() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Health)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def site_with(port: int | None, state: InstanceState = InstanceState.RUNNING) -> Site:
    site = MemorySite([])
    site.instances_by_id["i-1"] = Instance(
        instance_id="i-1",
        run_id="r",
        server_id="s",
        state=state,
        machine_id="m",
        addresses={8000: ("127.0.0.1", port)} if port else {},
        detail="QEMU was killed by signal 9",
    )
    return cast("Site", site)


def test_an_http_gate_holds_when_status_and_body_are_as_wanted(server_port: int) -> None:
    site = site_with(server_port)
    assert check_gate(HttpGate(port=8000, path="/health", contains="ok"), site, "i-1", AGENT).held
    assert check_gate(HttpGate(port=8000, path="/", status=503), site, "i-1", AGENT).held
    assert check_gate(HttpGate(port=8000, host="shop.example.com"), site, "i-1", AGENT).held, "one of many names there"


def test_an_http_gate_says_what_it_saw_instead(server_port: int) -> None:
    site = site_with(server_port)
    assert check_gate(HttpGate(port=8000, path="/x"), site, "i-1", AGENT).seen.endswith("/x answered 503")
    seen = check_gate(HttpGate(port=8000, path="/health", contains="ready"), site, "i-1", AGENT).seen
    assert "answered 200 without 'ready'" in seen


def test_a_refused_connection_means_not_yet() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        result = check_gate(HttpGate(port=8000), site_with(unused.getsockname()[1]), "i-1", AGENT)
    assert not result.held
    assert "refused" in result.seen


def test_a_port_without_an_address_means_not_yet() -> None:
    assert "no address for guest port 8000" in check_gate(HttpGate(port=8000), site_with(None), "i-1", AGENT).seen


@pytest.fixture
def guest() -> Iterator[Callable[[Callable[[socket.socket], None]], int]]:
    """Start a guest that treats its one connection as the given function does; returns its port."""
    threads: list[threading.Thread] = []
    listeners: list[socket.socket] = []

    def start(behave: Callable[[socket.socket], None]) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                behave(connection)

        threads.append(threading.Thread(target=serve))
        threads[-1].start()
        return int(listener.getsockname()[1])

    yield start
    for thread in threads:
        thread.join()
    for listener in listeners:
        listener.close()


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 2", b"\xff" * 100_000 + b"\n"])
def test_rubbish_for_an_answer_means_not_yet(
    guest: Callable[[Callable[[socket.socket], None]], int], answer: bytes
) -> None:
    def behave(connection: socket.socket) -> None:
        try:
            connection.recv(65_536)
            connection.sendall(answer)
        except OSError:
            return

    assert not check_gate(HttpGate(port=8000), site_with(guest(behave)), "i-1", AGENT).held


def test_a_guest_that_dribbles_cannot_hold_the_run_for_ever(
    guest: Callable[[Callable[[socket.socket], None]], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery.gates, "CHECK_SECONDS", 0.3)
    cut_off = threading.Event()

    def behave(connection: socket.socket) -> None:
        try:
            connection.sendall(b"HTTP/1.1 200 OK\r\n")
            while True:
                connection.sendall(b"X-More: 1\r\n")
                threading.Event().wait(0.05)
        except OSError:
            cut_off.set()

    assert not check_gate(HttpGate(port=8000), site_with(guest(behave)), "i-1", AGENT).held
    assert cut_off.wait(PATIENCE_SECONDS)


def test_a_console_gate_looks_for_its_text() -> None:
    site = site_with(None)
    assert check_gate(ConsoleGate(text="login:"), site, "i-1", AGENT).held
    result = check_gate(ConsoleGate(text="Welcome"), site, "i-1", AGENT)
    assert not result.held
    assert result.seen == "the console's last line is 'web01 login:'"


def test_an_instance_that_is_still_pending_means_not_yet() -> None:
    assert not check_gate(ConsoleGate(text="login:"), site_with(None, InstanceState.PENDING), "i-1", AGENT).held


def test_an_instance_that_died_fails_the_gate_at_once_with_the_end_of_its_console() -> None:
    with pytest.raises(GateFailed) as caught:
        check_gate(ConsoleGate(text="login:"), site_with(None, InstanceState.STOPPED), "i-1", AGENT)
    assert "i-1 is stopped: QEMU was killed by signal 9" in str(caught.value)
    assert "  | web01 login:" in str(caught.value)


def test_a_tcp_gate_holds_when_somebody_takes_the_connection(server_port: int) -> None:
    assert check_gate(TcpGate(port=8000), site_with(server_port), "i-1", AGENT).held


def test_a_connection_that_is_hung_up_at_once_means_not_yet(
    guest: Callable[[Callable[[socket.socket], None]], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a port forwarder does when nobody listens in the guest."""
    monkeypatch.setattr(recovery.gates, "TCP_SILENCE_SECONDS", PATIENCE_SECONDS)
    result = check_gate(TcpGate(port=8000), site_with(guest(lambda connection: None)), "i-1", AGENT)
    assert not result.held
    assert "hung up at once" in result.seen
    assert "no address" in check_gate(TcpGate(port=8000), site_with(None), "i-1", AGENT).seen


@pytest.mark.parametrize("gate", [TcpGate(port=8000), HttpGate(port=8000, path="/health")])
def test_a_connection_that_only_a_forwarder_has_taken_means_not_yet(
    guest: Callable[[Callable[[socket.socket], None]], int], monkeypatch: pytest.MonkeyPatch, gate: Gate
) -> None:
    """As QEMU's does while the guest is still in its firmware."""
    monkeypatch.setattr(recovery.gates, "TAKEN_SECONDS", 0.1)
    site = site_with(guest(lambda connection: connection.recv(65_536) and None))
    cast("MemorySite", site).forwarder_only = True
    result = check_gate(gate, site, "i-1", AGENT)
    assert not result.held
    assert "the guest does not take connections yet" in result.seen


def test_gates_about_the_guests_agent_ask_the_agent() -> None:
    assert check_gate(HeartbeatGate(), site_with(None), "i-1", AGENT) == GateResult(False, "no word")
    assert check_gate(CommandGate(name="db-ok"), site_with(None), "i-1", AGENT).seen == "no word of db-ok"


@pytest.mark.parametrize(
    "gate",
    [
        HttpGate(port=80),
        HttpGate(port=1, contains="x"),
        TcpGate(port=22),
        ConsoleGate(text="t"),
        HeartbeatGate(),
        CommandGate(name="c"),
    ],
)
def test_a_gate_survives_json(gate: Gate) -> None:
    assert gate_from_json(gate_to_json(gate)) == gate


def test_a_gate_that_waits_for_long_says_what_it_sees(world: World) -> None:
    said: list[str] = []
    world.site.console_text = "GRUB loading"
    run = world.plan(RunKind.DRILL)

    def listen() -> None:
        said.extend(step.waits_for for step in world.store.get(run.id).steps if step.waits_for)

    world.clock.on_wait = listen
    assert world.perform(run).state is RunState.FAILED
    assert list(dict.fromkeys(said)) == [
        "'login:' on the console, for up to 300 s",
        "'login:' on the console, for up to 300 s; last seen: the console's last line is 'GRUB loading'",
    ]
