"""Small documents that say when they are damaged, and a single flipped bit turned back: where a seal or a signature
says what a document was, that can be proven."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from blake3 import blake3

MAX_BYTES = 16 << 10
"""Up to so many, every bit is tried: a few seconds."""


def sealed(document: dict[str, Any]) -> bytes:
    """As JSON, with the BLAKE3 of what it says as `seal`."""
    plain = json.loads(json.dumps(document))
    return json.dumps(plain | {"seal": _seal(plain)}, indent=1).encode()


def opened(content: bytes) -> dict[str, Any]:
    """What was sealed, as JSON has it. Raises ValueError where it says anything else."""
    try:
        document: dict[str, Any] = json.loads(content)
        seal = document.pop("seal")
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"there is no seal: {error}") from None
    if seal != _seal(document):
        raise ValueError("the seal is another document's")
    return document


def turned_back(damaged: bytes, is_sound: Callable[[bytes], bool]) -> bytes | None:
    """The document as it was, or None where more than one bit is wrong, or it is too long to try."""
    if len(damaged) > MAX_BYTES:
        return None
    for bit in range(8 * len(damaged)):
        candidate = bytearray(damaged)
        candidate[bit // 8] ^= 1 << bit % 8
        if is_sound(bytes(candidate)):
            return bytes(candidate)
    return None


def _seal(document: dict[str, Any]) -> str:
    return blake3(json.dumps(document, sort_keys=True).encode()).hexdigest()
