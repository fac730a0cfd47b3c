"""The service's own certificate authority, and the keys that lie in DATA/pki.

    ca.key ca.pem             ECDSA P-256, 20 years: signs everything below; its fingerprint is in every token
    service.key service.pem   what the service shows; renewed at start and once a day when little is left of it
    sign.key sign.pub         Ed25519: signs recovery points, and is never replaced

Certificates begin two days ago, for clocks that are behind. TLS 1.3 only.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from agent.protocol.errors import BadMessage, StorageError
from agent.protocol.tokens import SERVICE_NAME
from service.files import read_bytes, write_private
from service.keys import is_issued_by, is_key_of, key_pem, load_key, read_certificate

BACKDATED = timedelta(days=2)
CA_LIFE = timedelta(days=20 * 365)
SERVICE_LIFE = timedelta(days=365)
AGENT_LIFE = timedelta(days=365)
RENEW_BELOW_SHARE = 1 / 3
_NO_CHECK_TIME = ssl.VerifyFlags(0x200000)  # X509_V_FLAG_NO_CHECK_TIME, which the ssl module does not name


def _utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class AgentCertificate:
    """A client certificate as issued. `serial` is hex, the form in which the store knows it."""

    pem: str
    serial: str
    not_after: datetime


class Pki:
    """Use `Pki.open`: it makes what is missing. Raises StorageError where the folder cannot be used."""

    def __init__(
        self,
        folder: Path,
        ca_key: ec.EllipticCurvePrivateKey,
        ca: x509.Certificate,
        signing_key: Ed25519PrivateKey,
        now: Callable[[], datetime],
    ) -> None:
        self._folder = folder
        self._ca_key = ca_key
        self._ca = ca
        self._now = now
        self.signing_key = signing_key

    @classmethod
    def open(cls, folder: Path, listen_host: str, now: Callable[[], datetime] = _utc_now) -> Self:
        """The keys in `folder`; what is not there is made. The service's certificate is valid for `listen_host`."""
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{folder} cannot be made: {error.strerror}", "check the rights and the disk") from None
        ca_key, ca = _open_ca(folder, now)
        pki = cls(folder, ca_key, ca, _open_signing_key(folder), now)
        pki.renew_if_due(listen_host)
        return pki

    @property
    def ca_pem(self) -> bytes:
        return self._ca.public_bytes(serialization.Encoding.PEM)

    @property
    def ca_fingerprint(self) -> str:
        """SHA-256 of the CA certificate's DER, hex."""
        return self._ca.fingerprint(hashes.SHA256()).hex()

    def renew_if_due(self, listen_host: str) -> bool:
        """Make the service's certificate if there is none, it nears its end, or it lacks a name. True if made."""
        names = _service_names(listen_host)
        current = read_certificate(read_bytes(self._folder / "service.pem") or b"")
        if current is not None and self._is_good(current, names):
            return False
        key = ec.generate_private_key(ec.SECP256R1())
        extensions: list[x509.ExtensionType] = [x509.SubjectAlternativeName(names)]
        certificate = self._issue(
            SERVICE_NAME, key.public_key(), SERVICE_LIFE, ExtendedKeyUsageOID.SERVER_AUTH, extensions
        )
        # A crash between the two leaves a pair that does not fit; `_is_good` compares them at the next start.
        write_private(self._folder / "service.key", key_pem(key))
        write_private(self._folder / "service.pem", certificate.public_bytes(serialization.Encoding.PEM))
        return True

    def server_context(self) -> ssl.SSLContext:
        """TLS for the service: agents may show a certificate of ours; any other ends the handshake.

        One that has expired gets through and is refused with the first request: asyncio ends a failed handshake
        without a word, and an agent that does not hear why cannot say what to do. Who calls checks `not_after`."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(cadata=self.ca_pem.decode())
        context.verify_mode = ssl.CERT_OPTIONAL
        context.verify_flags |= _NO_CHECK_TIME
        self.load_service_certificate(context)
        return context

    def load_service_certificate(self, context: ssl.SSLContext) -> None:
        """What new connections will be shown; for a context in use after a renewal."""
        context.load_cert_chain(self._folder / "service.pem", self._folder / "service.key")

    def issue_agent(self, csr_pem: str, server_id: str) -> AgentCertificate:
        """A client certificate for the key in a signing request. The names in the request count for nothing.

        Raises BadMessage."""
        certificate = self._issue(server_id, _requested_key(csr_pem), AGENT_LIFE, ExtendedKeyUsageOID.CLIENT_AUTH, [])
        return AgentCertificate(
            pem=certificate.public_bytes(serialization.Encoding.PEM).decode(),
            serial=f"{certificate.serial_number:x}",
            not_after=certificate.not_valid_after_utc,
        )

    def _issue(
        self,
        name: str,
        key: ec.EllipticCurvePublicKey,
        life: timedelta,
        purpose: x509.ObjectIdentifier,
        extensions: Sequence[x509.ExtensionType],
    ) -> x509.Certificate:
        builder = (
            _builder(name, self._ca.subject, key, self._now(), life)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._ca_key.public_key()), critical=False
            )
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        return builder.sign(self._ca_key, hashes.SHA256())

    def _is_good(self, certificate: x509.Certificate, names: Sequence[x509.GeneralName]) -> bool:
        if not is_issued_by(certificate, self._ca):
            return False
        begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if end - self._now() < (end - begin) * RENEW_BELOW_SHARE:
            return False
        try:
            self.load_service_certificate(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
        except (OSError, ssl.SSLError):  # the key is missing, damaged, or another one's
            return False
        covered = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return set(names) <= set(covered)


def _open_ca(folder: Path, now: Callable[[], datetime]) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    pem = read_bytes(folder / "ca.pem")
    key = load_key(folder / "ca.key")
    if pem is not None:
        certificate = read_certificate(pem)
        if certificate is None or not is_issued_by(certificate, certificate):
            raise StorageError(f"{folder / 'ca.pem'} is damaged", "restore it from a backup")
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not is_key_of(key, certificate):
            raise StorageError(
                f"{folder / 'ca.key'} is missing or does not belong to ca.pem",
                "restore both from a backup; deleting both makes a new CA, and every agent has to enrol again",
            )
        return key, certificate
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        key = ec.generate_private_key(ec.SECP256R1())
        write_private(folder / "ca.key", key_pem(key))
    name = f"Understudy CA {x509.SubjectKeyIdentifier.from_public_key(key.public_key()).digest.hex()[:12]}"
    certificate = (
        _builder(name, None, key.public_key(), now(), CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    write_private(folder / "ca.pem", certificate.public_bytes(serialization.Encoding.PEM))
    return key, certificate


def _open_signing_key(folder: Path) -> Ed25519PrivateKey:
    key = load_key(folder / "sign.key")
    if key is None:
        if (folder / "sign.pub").exists():
            raise StorageError(
                f"{folder / 'sign.key'} is missing, and the recovery points there are were signed with it",
                "restore it from a backup",
            )
        key = Ed25519PrivateKey.generate()
        write_private(folder / "sign.key", key_pem(key))
    if not isinstance(key, Ed25519PrivateKey):
        raise StorageError(f"{folder / 'sign.key'} is not an Ed25519 key", "restore it from a backup")
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    known = read_bytes(folder / "sign.pub")
    if known is None:
        write_private(folder / "sign.pub", public)
    elif known != public:  # 32 bytes with a flipped bit are an Ed25519 key as well, only another one
        raise StorageError(
            f"{folder / 'sign.key'} and sign.pub beside it do not belong together: one of them is damaged",
            "restore both from a backup, or sign.pub from its copy; a sign.pub that is removed is made from sign.key",
        )
    return key


def _builder(
    name: str, issuer: x509.Name | None, key: ec.EllipticCurvePublicKey, now: datetime, life: timedelta
) -> x509.CertificateBuilder:
    """`issuer` None: itself."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer or subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _service_names(listen_host: str) -> list[x509.GeneralName]:
    texts = [SERVICE_NAME, "localhost", "127.0.0.1", listen_host, socket.gethostname()]
    names: list[x509.GeneralName] = []
    for text in dict.fromkeys(texts):
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            if text.isascii():
                names.append(x509.DNSName(text))
            continue
        if not address.is_unspecified:
            names.append(x509.IPAddress(address))
    return names


def _requested_key(csr_pem: str) -> ec.EllipticCurvePublicKey:
    try:
        request = x509.load_pem_x509_csr(csr_pem.encode())
        signed = request.is_signature_valid
        key = request.public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise BadMessage("the certificate signing request cannot be read", "send PEM with an ECDSA P-256 key") from None
    if not signed:
        raise BadMessage("the certificate signing request is not signed by the key in it")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise BadMessage("the certificate signing request's key has another kind than ECDSA P-256")
    return key
