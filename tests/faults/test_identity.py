"""Who may come in, and what those hear who may not."""

from __future__ import annotations

import json
import os
import random
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from agent.inventory import machine_id
from agent.state import State
from service.pki import Pki
from tests.faults.harness import Agent, Ledger, Service, ended
from tests.faults.hostile import Hostile
from tests.faults.images import change_image
from tests.faults.machine import on_another_machine

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="being another machine needs mounts of one's own")


def test_tokens_that_are_none_of_ours_enrol_nobody(service: Service, tmp_path: Path) -> None:
    token = service.token("--name", "web01")
    last = "0" if token[-1] != "0" else "1"
    for wrong in ("", "x", token[:-5], token[:-1] + last, token[:-64] + "0" * 64, "ust1_" + "A" * 43 + token[-65:]):
        agent = Agent(tmp_path / "agent", service)
        complaint = agent.ask("enroll", service.url, wrong).complaint
        assert token[5:40] not in complaint, "a secret belongs in no message"
        assert "enrol" in agent.push().complaint
    Agent(tmp_path / "agent", service).ask("enroll", service.url, token, "--json").document  # noqa: B018  # asserts


def test_a_token_is_good_once(service: Service, tmp_path: Path) -> None:
    token = service.token("--name", "web01")
    Agent(tmp_path / "first", service).ask("enroll", service.url, token, "--json").document  # noqa: B018  # asserts
    assert "enroll-token" in Agent(tmp_path / "second", service).ask("enroll", service.url, token).complaint


def test_an_agent_does_not_talk_to_another_service_on_the_same_port(
    protected: Agent, image: Path, ledger: Ledger, service: Service, tmp_path: Path
) -> None:
    token = service.token("--name", "web02")
    service.stop()
    other = Service(tmp_path / "other", port=service.port)
    other.start()
    try:
        assert "enrol" in protected.push().complaint
        assert "fingerprint" in Agent(tmp_path / "new", other).ask("enroll", other.url, token).complaint
    finally:
        other.stop()
    service.start()
    change_image(image, random.Random(2))
    ledger.reported(protected.push(), image)
    ledger.check(service)


def test_an_address_that_is_not_https_is_refused(service: Service, tmp_path: Path) -> None:
    token = service.token("--name", "web02")
    for wrong in (service.url.replace("https:", "http:"), "nonsense", "ftp://x", "https://"):
        complaint = Agent(tmp_path / "new", service).ask("enroll", wrong, token).complaint
        assert "https://HOST" in complaint or "check the URL" in complaint, complaint


@pytest.mark.parametrize("days", [-3 * 365, 30], ids=["run out", "not valid yet"])
def test_an_agents_certificate_out_of_its_time_is_refused_and_enrolling_anew_goes_on(
    protected: Agent, image: Path, ledger: Ledger, service: Service, days: int
) -> None:
    state = State(protected.folder)
    good = state.certificate_path.read_text()
    pki = Pki.open(service.data / "pki", "127.0.0.1", now=lambda: datetime.now(UTC) + timedelta(days=days))
    state.save_certificate(pki.issue_agent(request_of(state), protected.server_id).pem.encode())
    change_image(image, random.Random(2))
    complaint = protected.push().complaint
    assert "certificate" in complaint
    assert "enrol" in complaint
    state.save_certificate(good.encode())
    ledger.reported(protected.push(), image)
    protected.enroll("web01")
    ledger.reported(protected.push(), image)
    ledger.check(service)


def test_a_service_whose_certificate_ran_out_makes_itself_another(
    protected: Agent, image: Path, ledger: Ledger, service: Service
) -> None:
    service.stop()
    remade(service, datetime.now(UTC) - timedelta(days=3 * 365))
    service.start()
    ledger.reported(protected.push(), image)
    ledger.check(service)


def test_an_agent_whose_clock_is_far_behind_says_so(
    protected: Agent, image: Path, ledger: Ledger, service: Service
) -> None:
    """Seen from such an agent the service's certificate is not valid yet."""
    service.stop()
    remade(service, datetime.now(UTC) + timedelta(days=30))
    service.start()
    assert "clock" in protected.push().complaint
    service.stop()
    remade(service, datetime.now(UTC))
    service.start()
    ledger.reported(protected.push(), image)
    ledger.check(service)


def test_the_instant_of_a_point_is_told_by_the_services_clock(
    protected: Agent, image: Path, ledger: Ledger, service: Service
) -> None:
    before = datetime.now(UTC) - timedelta(milliseconds=1)
    point = ledger.reported(protected.push(), image)
    taken = {one["id"]: datetime.fromisoformat(one["taken_at"]) for one in service.points("web01")}
    assert before <= taken[point] <= datetime.now(UTC)


@pytest.mark.root
@needs_root
def test_two_agents_with_one_identity_on_two_machines(
    protected: Agent, image: Path, ledger: Ledger, service: Service, tmp_path: Path
) -> None:
    copy = copied(protected, tmp_path)
    copy.prefix = on_another_machine(tmp_path, 2)
    for _ in range(2):
        assert "identity" in copy.push().complaint
        change_image(image, random.Random(2))
        ledger.reported(protected.push(), image)
    both = [protected.begin("push", "--json"), copy.begin("push", "--json")]
    own, others = (ended(one) for one in both)
    ledger.reported(own, image)
    assert "identity" in others.complaint
    ledger.check(service)


def test_a_copied_state_folder_on_the_same_machine(
    protected: Agent, image: Path, ledger: Ledger, service: Service, tmp_path: Path
) -> None:
    copy = copied(protected, tmp_path)
    rng = random.Random(3)
    for agent in (copy, protected, copy, protected):
        change_image(image, rng)
        ledger.reported(agent.push(), image)
    change_image(image, rng, 100)
    both = [agent.begin("push", "--json") for agent in (protected, copy)]
    for one in both:
        ran = ended(one)
        if ran.code:
            assert ran.complaint
    ledger.check(service, image)
    ledger.reported(protected.push(), image)
    ledger.check(service, image)


def test_a_lost_state_folder_is_made_good_by_enrolling_again(
    protected: Agent, image: Path, ledger: Ledger, service: Service
) -> None:
    server_id = protected.server_id
    shutil.rmtree(protected.folder)
    assert "enrol" in protected.push().complaint
    protected.enroll("web01")
    assert protected.server_id == server_id
    assert "protect" in protected.push().complaint
    protected.protect(image)
    pushed = protected.push()
    ledger.reported(pushed, image)
    assert pushed.document["sent_bytes"] < 200_000, "all was there already"
    ledger.check(service)


def test_damage_in_the_state_folder_is_one_clear_line_or_no_harm(
    protected: Agent, image: Path, ledger: Ledger, service: Service
) -> None:
    for name, content in (
        ("identity.json", b"{"),
        ("identity.json", b"[]"),
        ("identity.json", b'{"url": 5}'),
        ("key.pem", b"no key"),
        ("certificate.pem", b""),
        ("ca.pem", b"\xff\xfe"),
        ("protected.json", b"null"),
        ("protected.json", b"[1]"),
        ("protected.json", b'{"volumes": 7}'),
        ("session.json", b"x"),
        ("session.json", b"[]"),
        ("session.json", b'{"session": "pt-none"}'),
    ):
        path = protected.folder / name
        good = path.read_bytes()
        path.write_bytes(content)
        pushed = protected.push()
        if pushed.code:
            assert pushed.complaint
        else:
            ledger.reported(pushed, image)
        path.write_bytes(good)
    ledger.reported(protected.push(), image)
    ledger.check(service)


def test_damage_in_the_digest_cache_costs_a_scan_and_nothing_else(
    protected: Agent, image: Path, ledger: Ledger, service: Service
) -> None:
    rng = random.Random(4)
    (volume,) = (protected.folder / "volumes").iterdir()
    for name, content in (
        ("digests", None),
        ("digests", rng.randbytes(5000)),
        ("digests", bytes(4096)),
        ("position.json", None),
        ("digests.new", b"left behind"),
        ("position.json", json.dumps({"root": "0" * 64, "size_bytes": 1, "block_bytes": 1}).encode()),
        ("position.json", b"{"),
        ("position.json", b'{"root": 5}'),
    ):
        if content is None:
            (volume / name).unlink()
        else:
            (volume / name).write_bytes(content)
        change_image(image, rng, 3)
        ledger.reported(protected.push(), image)
    ledger.check(service)


def test_a_revoked_machine_learns_nothing_new(hostile_of_stranger: Hostile) -> None:
    answer = hostile_of_stranger.ask("GET", "/agent/v1/points/latest")
    assert answer.status in (0, 401, 403, 495), answer


@pytest.fixture
def hostile_of_stranger(protected: Agent, service: Service, tmp_path: Path) -> Hostile:
    """Somebody whose certificate our CA signed, but whom the service never enrolled: a leaked CA key's work."""
    stranger = copied(protected, tmp_path)
    state = State(stranger.folder)
    pki = Pki.open(service.data / "pki", "127.0.0.1")
    state.save_certificate(pki.issue_agent(request_of(state), protected.server_id).pem.encode())
    return Hostile(stranger, machine_id())


def copied(agent: Agent, folder: Path) -> Agent:
    shutil.copytree(agent.folder, folder / "copy")
    return Agent(folder / "copy", agent.service)


def request_of(state: State) -> str:
    """A signing request for an agent's own key."""
    key = serialization.load_pem_private_key(state.key_path.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


def remade(service: Service, now: datetime) -> None:
    """The service's certificate as if made at `now`."""
    (service.data / "pki" / "service.pem").unlink()
    Pki.open(service.data / "pki", "127.0.0.1", now=lambda: now)
