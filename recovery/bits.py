"""A single flipped bit, turned back: where a seal or a signature says what a document was, that can be proven."""

from __future__ import annotations

from collections.abc import Callable

MAX_BYTES = 16 << 10
"""Up to so many, every bit is tried: a few seconds."""


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
