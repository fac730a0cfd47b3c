"""The API over real TLS, of a real service process that all tests here share."""

import http.client
import json
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.protocol.messages import PROTOCOL_VERSION, VERSION_HEADER
from tests.faults.harness import Service, served
from tests.patience import PATIENCE_SECONDS

PLAN = "plan: shop\ngroups:\n  - servers:\n      - name: web01\n"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with served(tmp_path_factory.mktemp("service")) as made:
        yield made


def ask(
    service: Service, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
) -> tuple[int, Any]:
    """(status, JSON). With an operator's token unless `headers` say otherwise."""
    if headers is None:
        headers = {"Authorization": "Bearer " + (service.data / "admin-token").read_text().strip()}
    context = ssl.create_default_context(cafile=str(service.data / "pki" / "ca.pem"))
    connection = http.client.HTTPSConnection("127.0.0.1", service.port, context=context, timeout=PATIENCE_SECONDS)
    try:
        sent = body if isinstance(body, bytes | None) else json.dumps(body)
        connection.request(method, path, sent, headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def code(answer: tuple[int, Any]) -> tuple[int, str]:
    return answer[0], answer[1]["error"]["code"]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer nonsense"},
        {"Authorization": "Bearer usa1_" + "x" * 43 + "_" + "0" * 64},
        {"Authorization": "Basic YTpi"},
    ],
)
@pytest.mark.parametrize("path", ["/api/v1/servers", "/api/v1/points/pt-1/verify", "/api/v1/nowhere"])
def test_without_an_operators_token_nothing_is_told(service: Service, headers: dict[str, str], path: str) -> None:
    assert code(ask(service, "GET", path, headers=headers)) == (401, "token")


@pytest.mark.parametrize("path", ["hello", "renew", "sessions", "points/latest", "nowhere"])
def test_without_a_certificate_an_agent_gets_nothing(service: Service, path: str) -> None:
    assert code(ask(service, "POST", f"/agent/v1/{path}", {}, {VERSION_HEADER: str(PROTOCOL_VERSION)})) == (403, "auth")


@pytest.mark.parametrize("headers", [{}, {VERSION_HEADER: str(PROTOCOL_VERSION + 1)}])
def test_another_protocol_version_is_named(service: Service, headers: dict[str, str]) -> None:
    assert code(ask(service, "POST", "/agent/v1/enroll", {}, headers)) == (426, "version")


def test_the_ca_is_for_everybody(service: Service) -> None:
    fetched = ssl.get_server_certificate(("127.0.0.1", service.port))  # what is shown is not the CA itself
    assert fetched != (service.data / "pki" / "ca.pem").read_text()
    connection = http.client.HTTPSConnection(
        "127.0.0.1",
        service.port,
        context=ssl.create_default_context(cafile=str(service.data / "pki" / "ca.pem")),
        timeout=PATIENCE_SECONDS,
    )
    connection.request("GET", "/ca.pem")
    assert connection.getresponse().read() == (service.data / "pki" / "ca.pem").read_bytes()
    connection.close()


def test_what_is_not_there_or_not_allowed_is_our_json(service: Service) -> None:
    assert code(ask(service, "GET", "/nowhere")) == (404, "not_found")
    assert code(ask(service, "DELETE", "/api/v1/servers")) == (405, "usage")
    assert code(ask(service, "GET", "/api/v1/servers/nobody")) == (404, "not_found")
    assert code(ask(service, "GET", "/api/v1/points/pt-none")) == (404, "not_found")
    assert code(ask(service, "GET", "/api/v1/commands/c-none")) == (404, "not_found")
    assert code(ask(service, "GET", "/api/v1/runs/r-none")) == (404, "not_found")
    assert code(ask(service, "POST", "/api/v1/runs/r-none/end", {})) == (404, "not_found")
    assert code(ask(service, "POST", "/api/v1/servers/nobody/take", {})) == (404, "not_found")


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/api/v1/enroll-tokens", b"", "bad_message"),
        ("/api/v1/enroll-tokens", b"[" * 100_000, "bad_message"),
        ("/api/v1/enroll-tokens", {"name": 7}, "bad_message"),
        ("/api/v1/enroll-tokens", {"name": "a/b"}, "usage"),
        ("/api/v1/enroll-tokens", {"expires_hours": -1}, "usage"),
        ("/api/v1/runs", {}, "bad_message"),
        ("/api/v1/runs", {"kind": "party"}, "usage"),
        ("/api/v1/runs", {"kind": "drill"}, "usage"),
        ("/api/v1/runs", {"kind": "failback"}, "usage"),
        ("/api/v1/runs", {"kind": "failover", "target": "web01", "dryrun": True}, "bad_message"),
        ("/api/v1/runs", {"kind": "failback", "run": "failover-1", "grace_seconds": -1}, "usage"),
        ("/api/v1/runs", {"kind": "drill", "target": "web01", "point": " "}, "usage"),
        ("/api/v1/runs/failover-1/end", {"forse": True}, "bad_message"),
        ("/api/v1/runs/failover-1/retry", {"skip": True}, "bad_message"),
    ],
)
def test_bodies_that_are_not_right_name_what_is_wrong(service: Service, path: str, body: Any, expected: str) -> None:
    assert code(ask(service, "POST", path, body)) == (400, expected)


def test_queries_that_are_not_right_are_refused(service: Service) -> None:
    assert code(ask(service, "GET", "/api/v1/runs/r?wait_seconds=soon")) == (400, "usage")
    assert code(ask(service, "GET", "/api/v1/runs/r?after_version=x")) == (400, "usage")
    for path in ("/api/v1/runs?most=many", "/api/v1/audit?most=-1"):
        assert code(ask(service, "GET", path)) == (400, "usage")


def test_a_plan_is_kept_as_it_was_written(service: Service) -> None:
    assert code(ask(service, "PUT", "/api/v1/plans/shop", {"text": PLAN})) == (400, "usage"), "nobody protects web01"
    status, applied = ask(service, "PUT", "/api/v1/plans/shop", {"text": PLAN, "draft": True})
    assert (status, applied) == (200, {"name": "shop", "servers": ["web01"], "missing": ["web01"]})
    assert ask(service, "GET", "/api/v1/plans/shop") == (200, {"name": "shop", "text": PLAN})
    assert ask(service, "GET", "/api/v1/plans") == (200, ["shop"])
    assert code(ask(service, "PUT", "/api/v1/plans/other", {"text": PLAN})) == (400, "usage")
    assert code(ask(service, "PUT", "/api/v1/plans/shop", {"text": "groups: 7"})) == (400, "usage")
    assert code(ask(service, "GET", "/api/v1/plans/shop?tenant=acme")) == (404, "not_found")


def test_an_error_does_not_show_the_token(service: Service, tmp_path: Path) -> None:
    _, issued = ask(service, "POST", "/api/v1/enroll-tokens", {"name": "web01"})
    secret = issued["token"].split("_", 1)[1][:40]
    admin = (service.data / "admin-token").read_text()[5:45]
    assert secret not in service.log()
    assert admin not in service.log()
