"""Enrolment: a key made here, a certificate from the service, trust by the CA fingerprint that the token carries."""

from __future__ import annotations

import hashlib
import socket
import ssl
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from agent import __version__
from agent.client import ServiceClient, pinned_context, unverified_context
from agent.inventory import collect, machine_id
from agent.protocol.errors import TransportError, TrustError
from agent.protocol.messages import EnrollReply, EnrollRequest, RenewReply, RenewRequest
from agent.protocol.tokens import EnrollToken
from agent.state import Identity, State

RENEW_BELOW_SHARE = 1 / 3


async def enroll(state: State, url: str, token_text: str, ca_fingerprint: str | None = None) -> Identity:
    """Make an identity and keep it in `state`. Raises TokenError, TrustError, TransportError, UsageError."""
    token = EnrollToken.parse(token_text)
    state.make()
    ca_pem = await _pinned_ca(url, ca_fingerprint or token.ca_fingerprint)
    key = ec.generate_private_key(ec.SECP256R1())
    async with ServiceClient(url, pinned_context(ca_pem)) as client:
        reply = await client.ask(
            "/agent/v1/enroll",
            EnrollRequest(
                token=token.secret,
                csr_pem=_request_for(key),
                hostname=socket.gethostname(),
                machine_id=machine_id(),
                agent_version=__version__,
                inventory=collect(state.protected()),
            ),
            EnrollReply,
        )
    identity = Identity(
        url=url,
        server_id=reply.server_id,
        server_name=reply.server_name,
        ca_fingerprint=_fingerprint(ca_pem),
    )
    state.save_identity(
        identity, key_pem=_key_pem(key), certificate_pem=reply.certificate_pem.encode(), ca_pem=ca_pem.encode()
    )
    return identity


async def renew_if_due(state: State, client: ServiceClient) -> bool:
    """Renew the certificate when less than a third of its life is left; the key stays. True if it was renewed."""
    certificate = x509.load_pem_x509_certificate(state.certificate_path.read_bytes())
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if (end - datetime.now(UTC)) > (end - begin) * RENEW_BELOW_SHARE:
        return False
    key = serialization.load_pem_private_key(state.key_path.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    reply = await client.ask("/agent/v1/renew", RenewRequest(csr_pem=_request_for(key)), RenewReply)
    state.save_certificate(reply.certificate_pem.encode())
    return True


async def _pinned_ca(url: str, fingerprint: str) -> str:
    """The service's CA certificate, proven by its fingerprint. The connection that fetches it is not trusted."""
    async with ServiceClient(url, unverified_context(), patience_seconds=5) as client:
        answer = await client.call("GET", "/ca.pem", [])
    try:
        ca_pem = answer.decode("ascii")
        found = _fingerprint(ca_pem)
    except ValueError:
        raise TransportError(f"{url} is no Understudy service", "check the URL and the port") from None
    if found != fingerprint.lower().replace(":", ""):
        raise TrustError(
            f"{url} is not the service that issued this token: its CA has another fingerprint",
            "check the URL, or ask for a new token: understudy enroll-token",
        )
    return ca_pem


def _fingerprint(ca_pem: str) -> str:
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(ca_pem)).hexdigest()


def _request_for(key: ec.EllipticCurvePrivateKey) -> str:
    """A signing request. The name in it is of no account: the service puts the server's id into the certificate."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "understudy-agent")])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
