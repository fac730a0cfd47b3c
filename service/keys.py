"""Keys and certificates in PEM. A file with a flipped bit may still be a key or a certificate, only another one: so
what belongs together is tried on each other."""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agent.protocol.errors import StorageError
from service.files import read_bytes

Key = ec.EllipticCurvePrivateKey | Ed25519PrivateKey


def key_pem(key: Key) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def load_key(path: Path) -> Key | None:
    """None if there is no such file."""
    pem = read_bytes(path)
    if pem is None:
        return None
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise StorageError(f"{path} is damaged", "restore it from a backup") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey | Ed25519PrivateKey):
        raise StorageError(f"{path} holds a kind of key that is not ours", "restore it from a backup")
    return key


def read_certificate(pem: bytes) -> x509.Certificate | None:
    """None if it is damaged so that it cannot be read."""
    try:
        return x509.load_pem_x509_certificate(pem)
    except (ValueError, x509.InvalidVersion):
        return None


def is_key_of(key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> bool:
    """Tried, since a damaged key may still say which public key it had."""
    public = certificate.public_key()
    if key.public_key() != public or not isinstance(public, ec.EllipticCurvePublicKey):
        return False
    try:
        public.verify(key.sign(b"", ec.ECDSA(hashes.SHA256())), b"", ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, ValueError):
        return False
    return True


def is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True
