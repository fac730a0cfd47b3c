import asyncio
import socket
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID

from agent.protocol.errors import BadMessage, StorageError
from agent.protocol.tokens import SERVICE_NAME
from service.pki import Pki
from tests.seeds import seeded
from tests.service.certificates import key_pem, make_key, request_of
from tests.service.receiver.verify.rot import flip


def service_certificate(folder: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate((folder / "service.pem").read_bytes())


def client_context(pki: Pki, tmp_path: Path, issuer: Pki | None = None) -> ssl.SSLContext:
    """Trusts `pki`; shows a certificate of `issuer`, if there is one."""
    context = ssl.create_default_context(cadata=pki.ca_pem.decode())
    if issuer is not None:
        key = make_key()
        (tmp_path / "client.key").write_bytes(key_pem(key))
        (tmp_path / "client.pem").write_text(issuer.issue_agent(request_of(key), "srv-1").pem)
        context.load_cert_chain(tmp_path / "client.pem", tmp_path / "client.key")
    return context


async def shown_to_the_service(pki: Pki, context: ssl.SSLContext, name: str = SERVICE_NAME) -> str | None:
    """One real TLS connection; the common name of the certificate that the service saw. Raises ConnectionError."""
    seen: list[str | None] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        certificate = writer.get_extra_info("peercert")
        seen.append(dict(part[0] for part in certificate["subject"])["commonName"] if certificate else None)
        writer.write(b"ok")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=pki.server_context())
    async with server:
        port = server.sockets[0].getsockname()[1]
        version, answer = await asyncio.to_thread(talk, port, context, name)
    if not answer:
        raise ConnectionAbortedError("the service hung up")
    assert (version, answer) == ("TLSv1.3", b"ok")
    return seen[0]


def talk(port: int, context: ssl.SSLContext, name: str) -> tuple[str | None, bytes]:
    with (
        socket.create_connection(("127.0.0.1", port)) as plain,
        context.wrap_socket(plain, server_hostname=name) as tls,
    ):
        return tls.version(), tls.recv(2)


def test_everything_is_made_once_private_and_found_again(tmp_path: Path) -> None:
    first = Pki.open(tmp_path / "pki", "127.0.0.1")
    made = {path.name: path.read_bytes() for path in (tmp_path / "pki").iterdir()}
    assert made.keys() == {"ca.key", "ca.pem", "service.key", "service.pem", "sign.key", "sign.pub"}
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in (tmp_path / "pki").iterdir())
    again = Pki.open(tmp_path / "pki", "127.0.0.1")
    assert again.ca_fingerprint == first.ca_fingerprint
    assert {path.name: path.read_bytes() for path in (tmp_path / "pki").iterdir()} == made


@pytest.mark.parametrize("name", [SERVICE_NAME, "localhost", "127.0.0.1", "192.0.2.7"])
async def test_the_service_is_known_by_each_of_its_names(tmp_path: Path, name: str) -> None:
    pki = Pki.open(tmp_path / "pki", "192.0.2.7")
    assert await shown_to_the_service(pki, client_context(pki, tmp_path), name) is None


async def test_an_agents_certificate_names_its_server_and_not_what_it_asked_for(tmp_path: Path) -> None:
    pki = Pki.open(tmp_path / "pki", "127.0.0.1")
    assert await shown_to_the_service(pki, client_context(pki, tmp_path, issuer=pki)) == "srv-1"


async def test_an_agent_of_another_service_is_refused(tmp_path: Path) -> None:
    pki, other = Pki.open(tmp_path / "pki", "127.0.0.1"), Pki.open(tmp_path / "other", "127.0.0.1")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await shown_to_the_service(pki, client_context(pki, tmp_path, issuer=other))


async def test_an_expired_certificate_gets_as_far_as_to_be_told_so(tmp_path: Path) -> None:
    pki = Pki.open(tmp_path / "pki", "127.0.0.1")
    long_ago = Pki.open(tmp_path / "pki", "127.0.0.1", now=lambda: datetime.now(UTC) - timedelta(days=366))
    assert await shown_to_the_service(pki, client_context(pki, tmp_path, issuer=long_ago)) == "srv-1"


async def test_the_services_own_certificate_makes_nobody_an_agent(tmp_path: Path) -> None:
    pki = Pki.open(tmp_path / "pki", "127.0.0.1")
    context = client_context(pki, tmp_path)
    context.load_cert_chain(tmp_path / "pki" / "service.pem", tmp_path / "pki" / "service.key")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await shown_to_the_service(pki, context)


def test_certificates_are_for_one_purpose_and_begin_two_days_ago(tmp_path: Path) -> None:
    pki = Pki.open(tmp_path / "pki", "127.0.0.1")
    agent = x509.load_pem_x509_certificate(pki.issue_agent(request_of(make_key()), "srv-1").pem.encode())
    purposes = {
        agent: ExtendedKeyUsageOID.CLIENT_AUTH,
        service_certificate(tmp_path / "pki"): ExtendedKeyUsageOID.SERVER_AUTH,
    }
    for certificate, purpose in purposes.items():
        assert list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [purpose]
        assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        assert certificate.not_valid_before_utc < datetime.now(UTC) - timedelta(days=1)


def test_a_certificate_is_renewed_when_a_third_of_its_life_is_left_or_a_name_is_missing(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    folder = tmp_path / "pki"
    Pki.open(folder, "127.0.0.1", now=lambda: now)
    first = service_certificate(folder)
    Pki.open(folder, "127.0.0.1", now=lambda: now + timedelta(days=230))
    assert service_certificate(folder) == first
    Pki.open(folder, "127.0.0.1", now=lambda: now + timedelta(days=250))
    second = service_certificate(folder)
    assert second != first
    Pki.open(folder, "198.51.100.1", now=lambda: now + timedelta(days=250))
    assert service_certificate(folder) != second


def test_a_renewal_that_was_cut_in_the_middle_is_done_again(tmp_path: Path) -> None:
    folder = tmp_path / "pki"
    Pki.open(folder, "127.0.0.1")
    (folder / "service.key").write_bytes(key_pem(make_key()))
    Pki.open(folder, "127.0.0.1").server_context()  # raises where key and certificate do not fit


@pytest.mark.parametrize(
    ("lost", "said"), [("ca.key", "every agent has to enrol again"), ("sign.key", "from a backup")]
)
def test_a_key_that_was_lost_is_not_quietly_replaced(tmp_path: Path, lost: str, said: str) -> None:
    Pki.open(tmp_path / "pki", "127.0.0.1")
    (tmp_path / "pki" / lost).unlink()
    with pytest.raises(StorageError, match=said):
        Pki.open(tmp_path / "pki", "127.0.0.1")


def test_damaged_keys_are_named(tmp_path: Path) -> None:
    Pki.open(tmp_path / "pki", "127.0.0.1")
    (tmp_path / "pki" / "sign.key").write_bytes(b"rubbish")
    with pytest.raises(StorageError, match=r"sign\.key is damaged"):
        Pki.open(tmp_path / "pki", "127.0.0.1")


@pytest.mark.parametrize("name", ["ca.key", "ca.pem", "service.key", "service.pem", "sign.key", "sign.pub"])
def test_a_flipped_bit_is_named_or_changes_nothing(tmp_path: Path, name: str) -> None:
    """A key with a flipped bit may be a key as well: another one."""
    rng, folder = seeded(), tmp_path / "pki"
    Pki.open(folder, "127.0.0.1")
    sound = {path.name: path.read_bytes() for path in folder.iterdir()}
    key = make_key()
    for _ in range(20):
        for path, content in sound.items():
            (folder / path).write_bytes(content)
        flip(folder / name, rng.randrange(len(sound[name])), rng.randrange(8))
        try:
            pki = Pki.open(folder, "127.0.0.1")
        except StorageError as error:
            assert error.hint
            continue
        ca = x509.load_pem_x509_certificate(sound["ca.pem"])
        assert pki.ca_fingerprint == ca.fingerprint(hashes.SHA256()).hex()
        x509.load_pem_x509_certificate(
            pki.issue_agent(request_of(key), "srv-1").pem.encode()
        ).verify_directly_issued_by(ca)
        service_certificate(folder).verify_directly_issued_by(ca)
        pki.server_context()
        signed = serialization.load_pem_public_key(sound["sign.pub"])
        assert isinstance(signed, Ed25519PublicKey)
        signed.verify(pki.signing_key.sign(b"a manifest"), b"a manifest")


def test_requests_that_are_not_right_are_refused(tmp_path: Path) -> None:
    pki = Pki.open(tmp_path / "pki", "127.0.0.1")
    sound = request_of(make_key())
    der = bytearray(x509.load_pem_x509_csr(sound.encode()).public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    forged = ssl.DER_cert_to_PEM_cert(bytes(der)).replace("CERTIFICATE", "CERTIFICATE REQUEST")
    other_kind = request_of(rsa.generate_private_key(65537, 2048))  # type: ignore[arg-type]
    for wrong in ("", "rubbish", forged, other_kind):
        with pytest.raises(BadMessage):
            pki.issue_agent(wrong, "srv-1")
