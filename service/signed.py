"""Signed documents: the exact bytes that were signed as one string, and the Ed25519 signature over them, so that no
rule about how to write JSON stands between the signature and whoever checks it:

    {NAME: "{...}", "signature": base64, "public_key": base64 of the 32 raw bytes}
"""

from __future__ import annotations

import base64
import json

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey


def signed(name: str, text: str, key: Ed25519PrivateKey) -> dict[str, str]:
    return {
        name: text,
        "signature": base64.b64encode(key.sign(text.encode())).decode(),
        "public_key": base64.b64encode(key.public_key().public_bytes_raw()).decode(),
    }


def proven(name: str, document: bytes, key: Ed25519PublicKey) -> str:
    """The text in a signed document.

    Raises InvalidSignature; ValueError, KeyError, TypeError or RecursionError where it is no such document."""
    outer = json.loads(document)
    text = outer[name]
    key.verify(base64.b64decode(outer["signature"]), text.encode())
    return str(text)
