"""Lines to the service: kept, counted, made anew when they were idle for too long, ended from outside."""

from __future__ import annotations

import datetime
import http.client
import http.server
import ipaddress
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from agent.client import pinned_context
from agent.lines import EACH, LINES, LinePool
from tests.patience import PATIENCE_SECONDS, eventually

MIB = 1 << 20


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        server.bodies.append(body)
        if self.path == "/wait":
            server.waiting.set()
            server.go_on.wait(PATIENCE_SECONDS)
        if self.path == "/followed":  # answered when on all lines the next request has begun to come
            self.rfile.peek(1)
            server.all_followed.wait(PATIENCE_SECONDS)
        if self.path == "/cut" and not server.cut:
            server.cut = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.send_response(418 if self.path == "/teapot" else 200)
        answer = body[::-1]
        self.send_header("Content-Length", str(len(answer)))
        if self.path == "/last":
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.context = context
        self.bodies: list[bytes] = []
        self.connections: list[socket.socket] = []
        self.all_followed = threading.Barrier(LINES)
        self.cut = False
        self.waiting, self.go_on = threading.Event(), threading.Event()

    def get_request(self) -> tuple[socket.socket, object]:
        connection, address = super().get_request()
        wrapped = self.context.wrap_socket(connection, server_side=True)
        self.connections.append(wrapped)
        return wrapped, address

    def handle_error(self, *_: object) -> None:
        """A line that was cut is what these tests are about."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    (tmp_path / "certificate").write_bytes(pem)
    (tmp_path / "key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "certificate", tmp_path / "key")
    found = Server(context)
    thread = threading.Thread(target=found.serve_forever, args=(0.05,))
    thread.start()
    yield found
    found.go_on.set()
    found.shutdown()
    found.server_close()
    for connection in found.connections:
        connection.close()
    thread.join()


@pytest.fixture
def pool(server: Server, tmp_path: Path) -> Iterator[LinePool]:
    context = pinned_context((tmp_path / "certificate").read_text())
    found = LinePool("127.0.0.1", server.server_address[1], context, "127.0.0.1")
    yield found
    found.close()


def test_a_body_in_parts_arrives_whole_and_its_answer_comes_back(server: Server, pool: LinePool) -> None:
    parts = [os.urandom(3 * MIB), b"", memoryview(b"end")]
    status, answer = pool.ask("POST", "/", parts, {}).result(PATIENCE_SECONDS)
    assert (status, server.bodies) == (200, [b"".join(parts)])
    assert answer == b"".join(parts)[::-1]
    assert pool.ask("POST", "/teapot", [b"x"], {}).result(PATIENCE_SECONDS)[0] == 418


def test_lines_are_used_again(server: Server, pool: LinePool) -> None:
    for _ in range(5):
        pool.ask("POST", "/", [b"x"], {}).result(PATIENCE_SECONDS)
    assert len(server.connections) == 1


def test_what_passed_is_counted_with_tls_and_both_ways(pool: LinePool) -> None:
    pool.ask("POST", "/", [bytes(MIB)], {}).result(PATIENCE_SECONDS)
    first = pool.wire.sent_bytes, pool.wire.received_bytes
    assert all(MIB < count < MIB * 1.02 + 8192 for count in first)
    pool.ask("POST", "/", [b"x"], {}).result(PATIENCE_SECONDS)
    assert all(
        0 < after - before < 8192
        for before, after in zip(first, (pool.wire.sent_bytes, pool.wire.received_bytes), strict=True)
    )
    assert pool.receive_rate is not None and pool.network_rate is not None


def test_a_line_that_was_cut_while_idle_is_made_anew(server: Server, pool: LinePool) -> None:
    pool.ask("POST", "/", [b"1"], {}).result(PATIENCE_SECONDS)
    server.connections[0].shutdown(socket.SHUT_RDWR)
    assert pool.ask("POST", "/", [b"2"], {}).result(PATIENCE_SECONDS) == (200, b"2")
    assert len(server.connections) == 2


def test_a_line_that_the_service_closes_is_not_used_again(server: Server, pool: LinePool) -> None:
    pool.ask("POST", "/last", [b"1"], {}).result(PATIENCE_SECONDS)
    assert pool.ask("POST", "/", [b"2"], {}).result(PATIENCE_SECONDS) == (200, b"2")
    assert len(server.connections) == 2 and len(server.bodies) == 2


def test_what_is_sent_follows_on_busy_lines_before_these_are_answered(server: Server, pool: LinePool) -> None:
    asked = [pool.ask("POST", "/followed", [b"%d" % number], {}, brief=True) for number in range(LINES)]
    asked += [pool.ask("POST", "/", [b"%d" % number], {}, brief=True) for number in range(LINES, LINES * EACH)]
    answers = [one.result(PATIENCE_SECONDS) for one in asked]
    assert answers == [(200, b"%d" % number) for number in range(LINES * EACH)]
    assert len(server.connections) == LINES


def test_it_goes_when_it_comes_also_while_all_lines_wait_for_answers(server: Server, pool: LinePool) -> None:
    first = [pool.ask("POST", "/followed", [b"1"], {}, brief=True) for _ in range(LINES)]
    eventually(lambda: len(server.bodies) == LINES)
    second = [pool.ask("POST", "/", [b"2"], {}, brief=True) for _ in range(LINES)]
    assert {one.result(PATIENCE_SECONDS) for one in first} == {(200, b"1")}
    assert {one.result(PATIENCE_SECONDS) for one in second} == {(200, b"2")}


def test_no_large_body_is_sent_while_a_large_answer_is_not_read(
    pool: LinePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service would not read on before we do, and we would not before it does."""
    monkeypatch.setattr("agent.lines.LINES", 1)
    body = os.urandom(24 * MIB)  # more than the sockets of both ends take
    asked = [pool.ask("POST", "/", [body], {}) for _ in range(2)]
    assert {one.result(PATIENCE_SECONDS) for one in asked} == {(200, body[::-1])}


def test_all_that_was_under_way_on_a_line_that_is_cut_goes_again(
    server: Server, pool: LinePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.lines.LINES", 1)
    first = pool.ask("POST", "/", [b"1"], {}, brief=True)
    assert first.result(PATIENCE_SECONDS) == (200, b"1")
    asked = [pool.ask("POST", path, [b"2"], {}, brief=True) for path in ("/cut", "/")]
    assert [one.result(PATIENCE_SECONDS) for one in asked] == [(200, b"2")] * 2
    assert len(server.connections) == 2


def test_a_line_that_stays_silent_is_given_up_however_often_there_is_more_to_send(
    pool: LinePool, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.lines.LINES", 1)
    first = pool.ask("POST", "/wait", [b"1"], {}, 1.0, brief=True)
    assert server.waiting.wait(PATIENCE_SECONDS)

    def is_given_up() -> bool:
        pool.ask("POST", "/", [b"2"], {}, brief=True)
        return first.done()

    eventually(is_given_up)
    assert isinstance(first.exception(), TimeoutError)


def test_to_a_service_that_is_far_all_lines_are_made_together_if_much_is_to_be_sent(
    server: Server, pool: LinePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.lines.FAR_SECONDS", 0.0)
    pool.expect_much()
    pool.ask("POST", "/", [b"1"], {}).result(PATIENCE_SECONDS)
    eventually(lambda: len(server.connections) == LINES)


def test_a_line_made_in_advance_takes_the_first_request(server: Server, pool: LinePool) -> None:
    pool.connect()
    pool.ask("POST", "/", [b"1"], {}).result(PATIENCE_SECONDS)
    assert len(server.connections) == 1


def test_lines_that_are_too_many_by_now_end_when_they_are_free(server: Server, pool: LinePool) -> None:
    asked = [pool.ask("POST", "/followed", [b"1"], {}, brief=True) for _ in range(LINES)]
    eventually(lambda: len(server.bodies) == LINES)
    pool.keep(1)
    asked += [pool.ask("POST", "/", [b"2"], {}, brief=True) for _ in range(LINES * EACH)]
    assert [one.result(PATIENCE_SECONDS)[0] for one in asked] == [200] * len(asked)
    eventually(lambda: len(pool._lines) == 1)
    asked = [pool.ask("POST", "/", [b"3"], {}, brief=True) for _ in range(LINES * EACH)]
    assert [one.result(PATIENCE_SECONDS) for one in asked] == [(200, b"3")] * len(asked)
    assert len(server.connections) == LINES
    pool.keep(LINES)
    asked = [pool.ask("POST", "/followed", [b"4"], {}, brief=True) for _ in range(LINES)]
    asked += [pool.ask("POST", "/", [b"4"], {}, brief=True) for _ in range(LINES)]
    assert [one.result(PATIENCE_SECONDS) for one in asked] == [(200, b"4")] * len(asked)
    assert len(server.connections) == 2 * LINES - 1


def test_closing_wakes_who_waits_for_an_answer(server: Server, pool: LinePool) -> None:
    failures: list[BaseException] = []

    def ask() -> None:
        try:
            pool.ask("POST", "/wait", [b"x"], {}).result(PATIENCE_SECONDS)
        except (OSError, http.client.HTTPException) as error:
            failures.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    assert server.waiting.wait(PATIENCE_SECONDS)
    pool.close()
    asking.join(PATIENCE_SECONDS)
    assert not asking.is_alive() and len(failures) == 1


def test_a_service_that_is_not_there_is_an_error_at_once(pool: LinePool, server: Server) -> None:
    server.shutdown()
    server.socket.close()
    with pytest.raises(OSError):
        pool.ask("POST", "/", [b"x"], {}).result(PATIENCE_SECONDS)
