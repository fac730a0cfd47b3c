"""Signed evidence: a document as a point's manifest is one (service.signed)."""

from __future__ import annotations

import json
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from agent.protocol.errors import StorageError
from service.signed import proven, signed

FORMAT = "understudy-evidence-1"


def sealed(facts: dict[str, Any], key: Ed25519PrivateKey) -> bytes:
    """The facts as a signed document."""
    text = json.dumps({"format": FORMAT, **facts}, sort_keys=True)
    return json.dumps(signed("evidence", text, key), indent=1).encode() + b"\n"


def opened(document: bytes, key: Ed25519PublicKey) -> dict[str, Any]:
    """The facts in a signed document. Raises StorageError if it is damaged or was not signed by `key`."""
    try:
        facts: dict[str, Any] = json.loads(proven("evidence", document, key))
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
