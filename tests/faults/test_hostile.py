"""Whatever an agent with a valid certificate sends: refused, nothing written, and the others are still served."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.inventory import machine_id
from agent.protocol.digests import block_digest
from agent.protocol.frames import encode_blocks, encode_offer
from agent.state import State
from tests.faults.harness import Agent, Ledger, Service
from tests.faults.hostile import (
    BLOCK,
    Answer,
    Hostile,
    bad_blocks,
    good_blocks,
    read_answer,
    request_bytes,
    root_of,
    sealed_frame,
)
from tests.patience import PATIENCE_SECONDS

COUNT = 16
SIZE = COUNT * BLOCK
GROWTH_KIB = 300 << 10
"""What a service may grow by, whatever is thrown at it: a few bodies of the largest size, and what they unpack to."""


@pytest.fixture
def hostile(agent: Agent) -> Hostile:
    return Hostile(agent, machine_id())


@pytest.fixture(autouse=True)
def bounded_memory(service: Service) -> Iterator[None]:
    """The service lives through each of these tests, in one process, and does not grow without bound."""
    pid, before = service.pid, service.memory_peak_kib()
    yield
    if service.running and service.pid == pid:
        assert service.memory_peak_kib() - before < GROWTH_KIB


def refused(answer: Answer) -> str:
    """The code of an error that says whose fault it is: not ours."""
    assert 400 <= answer.status < 500, answer
    assert answer.code not in ("", "internal"), answer
    return answer.code


def test_frames_that_are_not_right_are_refused_and_write_nothing(hostile: Hostile, service: Service) -> None:
    rng = random.Random(1)
    content = rng.randbytes(SIZE)
    hostile.push(content)
    session = hostile.begin(SIZE).document["session"]
    for what, body in bad_blocks(COUNT, rng):
        answer = hostile.blocks(session, body)
        assert answer.code in ("bad_frame", "digest_mismatch"), (what, answer)
        assert answer.status < 500, (what, answer)
    assert hostile.commit(session, [root_of(content)]).status == 200, "nothing had been written"
    assert service.ask("verify", "--all").code == 0


def test_offers_that_are_not_right_are_refused(hostile: Hostile) -> None:
    rng = random.Random(2)
    content = rng.randbytes(SIZE)
    hostile.push(content)
    session = hostile.begin(SIZE).document["session"]
    for body in (
        b"",
        rng.randbytes(300),
        good_blocks([1], rng),
        encode_offer([COUNT], bytes(32)),
        encode_offer([2**63], bytes(32)),
        sealed_frame([3, 3], bytes(64), b"", kind=1),
        sealed_frame([1], bytes(32), b"payload", kind=1),
        sealed_frame([1], bytes(32), b"", kind=1, count=2**31),
        sealed_frame(range(65537), bytes(32) * 65537, b"", kind=1),
        encode_offer([1], bytes(32)) * 2,
        encode_offer([1], bytes(32))[:-1],
    ):
        assert hostile.offer(session, body).code == "bad_frame", body[:40]
    assert hostile.commit(session, [root_of(content)]).status == 200, "nothing had been made zero"


def test_volumes_that_are_not_there_are_not_found(hostile: Hostile) -> None:
    rng = random.Random(3)
    session = hostile.begin(SIZE).document["session"]
    for volume in (1, 127, 2**31, 2**200, -1, "x", "0x0", "1.0", "%2e%2e", "..%2f..", "%00"):
        for send, body in ((hostile.blocks, good_blocks([1], rng)), (hostile.offer, encode_offer([1], bytes(32)))):
            refused(send(session, body, volume))
    for other in ("pt-2222222222", "x", "%2e%2e%2f%2e%2e", "%00", "a" * 4000):
        refused(hostile.blocks(other, good_blocks([1], rng)))


def test_commits_that_do_not_fit_make_no_point(hostile: Hostile, service: Service, agent: Agent) -> None:
    rng = random.Random(4)
    content = rng.randbytes(SIZE)
    point, root = hostile.push(content), root_of(content)
    session = hostile.begin(SIZE).document["session"]
    assert hostile.commit(session, [root_of(rng.randbytes(SIZE))]).code == "root_mismatch"
    for roots in ([], [root, root], [root] * 5000, ["not hex"], [""], [root.upper() + "00"]):
        refused(hostile.commit(session, roots))
    for wrong in (
        {"consistency": "perfect"},
        {"completeness": ""},
        {"consistency": 7},
        {"age_seconds": "long ago"},
        {"age_seconds": float("inf")},
        {"age_seconds": float("nan")},
        {"age_seconds": 1e300},
        {"age_seconds": 1e12},
        {"age_seconds": 10**400},
        {"frozen_seconds": float("inf")},
        {"sent_bytes": 2**63},
        {"sent_bytes": -(2**80)},
        {"sent_bytes": 1.5},
        {"label": "\ud800"},
        {"label": "x" * (1 << 20)},
        {"label": 5},
    ):
        refused(hostile.commit(session, [root], **wrong))
    assert [listed["id"] for listed in service.points(agent.server_name)] == [point]
    service.kill()
    service.start()
    assert [listed["id"] for listed in service.points(agent.server_name)] == [point]
    assert hostile.push(content)


def test_volumes_that_cannot_be_are_refused(hostile: Hostile, service: Service) -> None:
    for size in (0, -512, 1, 513, 2**63, 2**64, 65 << 40, 10**400, 1.5, "1", None, True):
        refused(hostile.begin(size))  # type: ignore[arg-type]
    for block in (0, -1, 1, 3, 512, 65537, 2 << 20, 2**40, "65536"):
        message = {
            "machine_id": hostile.machine_id,
            "volumes": [{"path": "/dev/x", "size_bytes": SIZE, "block_bytes": block}],
        }
        refused(hostile.post("/agent/v1/sessions", message))
    refused(hostile.begin(*[SIZE] * 129))
    refused(hostile.begin())
    for path in ("\ud800", "/dev/\0", "x" * (1 << 20)):
        refused(hostile.begin(SIZE, path=path))
    service.kill()
    service.start()
    assert hostile.push(random.Random(5).randbytes(SIZE))


def test_machine_ids_that_cannot_be_are_refused(hostile: Hostile) -> None:
    for machine in ("", " ", "x" * 10_000, "\0", "\n", "\ud800", 5, None, ["a"]):
        hostile.machine_id = machine  # type: ignore[assignment]
        refused(hostile.begin(SIZE))


def test_json_that_is_not_right_is_refused(hostile: Hostile) -> None:
    rng = random.Random(6)
    deep = b'{"inventory":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    nested = b'{"inventory":' + b'{"a":' * 900 + b"1" + b"}" * 900 + b"}"
    bodies = [
        b"",
        b"\xff\xfe",
        b"null",
        b"[]",
        b'"x"',
        b"{",
        b"{}",
        b"1e999",
        b"9" * 5000,
        deep,
        nested,
        rng.randbytes(2000),
        json.dumps({"machine_id": {"a": 1}, "volumes": "x", "token": [], "csr_pem": 5, "root": 7}).encode(),
        json.dumps({"token": "a", "csr_pem": "no", "hostname": "\0", "machine_id": 5, "agent_version": ""}).encode(),
    ]
    session = hostile.begin(SIZE).document["session"]
    for path in (
        "/agent/v1/sessions",
        f"/agent/v1/sessions/{session}/commit",
        "/agent/v1/hello",
        "/agent/v1/renew",
        "/agent/v1/enroll",
        "/agent/v1/commands/x",
        "/agent/v1/points/latest/volumes/0/pulled",
    ):
        for body in bodies:
            refused(hostile.post(path, body))
    for kind in ("volumes", "inventory", "agent_version", "wait_seconds"):
        hello = {"machine_id": hostile.machine_id, "agent_version": "1", kind: 2**70}
        answer = hostile.post("/agent/v1/hello", hello)
        assert answer.status < 500, answer


def test_a_heartbeat_cannot_poison_what_is_kept_of_a_server(hostile: Hostile, service: Service, agent: Agent) -> None:
    volume = {"path": "/dev/x", "size_bytes": SIZE, "block_bytes": BLOCK}
    for wrong in (
        {"volumes": [{**volume, "size_bytes": 2**80}]},
        {"volumes": [{**volume, "size_bytes": -1}]},
        {"volumes": [{**volume, "path": "\ud800"}]},
        {"agent_version": "\ud800"},
        {"inventory": {"\ud800": "\ud800"}},
        {"inventory": {"cpus": float("inf")}},
        {"inventory": {"boot_mode": ["x"] * 100_000}},
        {"wait_seconds": -5},
    ):
        answer = hostile.post("/agent/v1/hello", {"machine_id": hostile.machine_id, "agent_version": "1", **wrong})
        assert answer.status < 500, (wrong, answer)
        listed = service.ask("servers", "--json")
        assert [one["name"] for one in listed.document] == [agent.server_name]
    service.kill()
    service.start()
    assert service.ask("servers", "--json").code == 0


def test_one_servers_agent_gets_at_nothing_of_anothers(
    hostile: Hostile, service: Service, agent: Agent, tmp_path: Path
) -> None:
    rng = random.Random(7)
    content = rng.randbytes(SIZE)
    point = hostile.push(content)
    session = hostile.begin(SIZE).document["session"]
    stranger_agent = Agent(tmp_path / "stranger", service)
    stranger_agent.enroll("other01")
    stranger = Hostile(stranger_agent, machine_id())
    everything = encode_offer(list(range(COUNT)), bytes(32 * COUNT))
    attempts: list[Callable[[], Answer]] = [
        lambda: stranger.offer(session, encode_offer([1], bytes(32))),
        lambda: stranger.blocks(session, good_blocks([1], rng)),
        lambda: stranger.commit(session, [root_of(content)]),
        lambda: stranger.commit(point, [root_of(content)]),
        lambda: stranger.post(f"/agent/v1/sessions/{session}/abandon", {}),
        lambda: stranger.ask("GET", f"/agent/v1/points/{point}"),
        lambda: stranger.ask("GET", "/agent/v1/points/latest"),
        lambda: stranger.ask("POST", f"/agent/v1/points/{point}/volumes/0/diff", everything),
        lambda: stranger.ask("POST", f"/agent/v1/points/{point}/volumes/0/pages", everything),
        lambda: stranger.post(
            f"/agent/v1/points/{point}/volumes/0/pulled", {"root": root_of(content), "machine_id": "m"}
        ),
    ]
    for attempt in attempts:
        assert refused(attempt()) in ("session_unknown", "not_found", "stale_epoch")
    assert stranger.begin(SIZE, supersedes=session).status == 200, "it is a server of its own"
    assert hostile.commit(session, [root_of(content)]).status == 200, "the session was left alone"


def test_the_same_request_twice_does_what_one_does(hostile: Hostile, ledger: Ledger, service: Service) -> None:
    content = random.Random(8).randbytes(SIZE)
    session = hostile.begin(SIZE).document["session"]
    indices = list(range(COUNT))
    contents = [content[index * BLOCK : (index + 1) * BLOCK] for index in indices]
    body = encode_blocks(indices, b"".join(map(block_digest, contents)), contents)
    threads = [threading.Thread(target=hostile.blocks, args=(session, body)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answers: list[Answer] = []
    threads = [
        threading.Thread(target=lambda: answers.append(hostile.commit(session, [root_of(content)]))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {answer.document["id"] for answer in answers} == {session}
    assert hostile.commit(session, [root_of(content)]).document["id"] == session
    assert [point["id"] for point in service.points(ledger.agent.server_name)] == [session]
    assert hostile.blocks(session, body).code in ("session_unknown", "superseded")


def test_bodies_over_the_limit_are_cut_off(hostile: Hostile) -> None:
    session = hostile.begin(SIZE).document["session"]
    for path in (f"/agent/v1/sessions/{session}/volumes/0/blocks", "/agent/v1/hello", "/agent/v1/enroll"):
        announced = hostile.ask("POST", path, b"x", headers=["Content-Length: 1099511627776"])
        assert announced.status in (0, 400), announced
        with hostile.connect() as line:
            line.sendall(request_bytes("POST", path, b"", ["Transfer-Encoding: chunked"]))
            piece = b"%x\r\n%s\r\n" % (1 << 20, bytes(1 << 20))
            sent = 0
            try:
                while sent < 64:
                    line.sendall(piece)
                    sent += 1
            except OSError:
                pass
            assert sent < 64 or read_answer(line).status == 400
    assert hostile.ask("GET", "/agent/v1/points/latest", headers=[f"X-Long: {'x' * 20_000}"]).status == 400


def test_requests_that_never_end_hold_nobody_up(
    hostile: Hostile, protected: Agent, image: Path, ledger: Ledger
) -> None:
    lines = [hostile.connect() for _ in range(40)]
    plain = [socket.create_connection(("127.0.0.1", protected.service.port)) for _ in range(40)]
    try:
        for at, line in enumerate(lines):
            request = request_bytes("POST", "/agent/v1/sessions", b"{", ["Content-Length: 1000"])
            line.sendall(request if at % 2 else request[:30])
        ledger.reported(protected.push(), image)
    finally:
        for one in [*lines, *plain]:
            one.close()
    ledger.check(protected.service)


def test_what_is_no_request_of_an_agent_is_refused(hostile: Hostile, service: Service, agent: Agent) -> None:
    rng = random.Random(9)
    for body in (b"GET / HTTP/1.1\r\n\r\n", rng.randbytes(3000), b"\x16\x03\x01" + rng.randbytes(500)):
        with socket.create_connection(("127.0.0.1", service.port), timeout=PATIENCE_SECONDS) as plain:
            plain.sendall(body)
            plain.shutdown(socket.SHUT_WR)
            try:
                while plain.recv(4096):
                    pass
            except OSError:
                pass
    for request in (rng.randbytes(500) + b"\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"):
        with hostile.connect() as line:
            with contextlib.suppress(OSError):
                line.sendall(request)
            assert read_answer(line).status < 500
    assert refused(hostile.ask("GET", "/agent/v1/points/latest", headers=["Understudy-Protocol: 2"]))
    for path in (
        "/agent/v1/../../etc/passwd",
        "/agent/v1/points/%2e%2e%2f%2e%2e",
        "/agent/v1/nothing",
        "/api/v1/servers",
    ):
        refused(hostile.ask("GET", path))
    without = ssl.create_default_context(cafile=str(State(agent.folder).ca_path))
    with (
        socket.create_connection(("127.0.0.1", service.port), timeout=PATIENCE_SECONDS) as plain,
        without.wrap_socket(plain, server_hostname="understudy.service") as line,
    ):
        line.sendall(request_bytes("GET", "/agent/v1/points/latest", b""))
        assert refused(read_answer(line)) == "auth"


def test_pulled_reports_that_are_not_true_are_refused(hostile: Hostile) -> None:
    content = random.Random(10).randbytes(SIZE)
    point = hostile.push(content)
    report: dict[str, Any] = {"root": root_of(content), "machine_id": hostile.machine_id}
    for volume, wrong in (
        (0, {"root": root_of(bytes(SIZE))}),
        (0, {"root": ""}),
        (0, {"machine_id": ""}),
        (1, {}),
        (-1, {}),
        (0, {"received_bytes": "many"}),
    ):
        refused(hostile.post(f"/agent/v1/points/{point}/volumes/{volume}/pulled", {**report, **wrong}))
    for body in (
        b"",
        encode_offer([COUNT], bytes(32)),
        encode_offer([1], bytes(32)) * 2,
        good_blocks([1], random.Random(1)),
    ):
        for what in ("diff", "diff?pages=1", "diff?pages=1&brief=1", "pages"):
            assert hostile.ask("POST", f"/agent/v1/points/{point}/volumes/0/{what}", body).code == "bad_frame"
