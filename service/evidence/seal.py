"""Signed evidence: the exact bytes that were signed as one string, and the Ed25519 signature over them, as in a point's
manifest, so that no rule about how to write JSON stands between the signature and whoever checks it:

    {"evidence": "{...}", "signature": base64, "public_key": base64 of the 32 raw bytes}
"""

from __future__ import annotations

import base64
import json
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from agent.protocol.errors import StorageError

FORMAT = "understudy-evidence-1"


def sealed(facts: dict[str, Any], key: Ed25519PrivateKey) -> bytes:
    """The facts as a signed document."""
    text = json.dumps({"format": FORMAT, **facts}, sort_keys=True)
    document = {
        "evidence": text,
        "signature": base64.b64encode(key.sign(text.encode())).decode(),
        "public_key": base64.b64encode(key.public_key().public_bytes_raw()).decode(),
    }
    return json.dumps(document, indent=1).encode() + b"\n"


def opened(document: bytes, key: Ed25519PublicKey) -> dict[str, Any]:
    """The facts in a signed document. Raises StorageError if it is damaged or was not signed by `key`."""
    try:
        outer = json.loads(document)
        text = outer["evidence"]
        key.verify(base64.b64decode(outer["signature"]), text.encode())
        facts: dict[str, Any] = json.loads(text)
    except InvalidSignature:
        raise StorageError(
            "the evidence's signature is not this key's, or the evidence was altered",
            "ask for the key of the service that made it: its pki/sign.pub",
        ) from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StorageError(f"the evidence cannot be read: {error}", "name the JSON file of the evidence") from None
    if facts.get("format") != FORMAT:
        raise StorageError(f"evidence of format {facts.get('format')!r} is unknown", "use the newer version")
    return facts
