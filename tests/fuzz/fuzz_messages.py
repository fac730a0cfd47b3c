"""Messages, tokens, manifests and plans: whatever text comes, it is understood or refused in words."""

from __future__ import annotations

import contextlib
import dataclasses
import json

import atheris

with atheris.instrument_imports(include=["agent.protocol", "recovery.plans", "service.receiver.manifest"]):
    from agent.protocol import messages
    from agent.protocol.errors import BadMessage, TokenError, UnderstudyError, UsageError
    from agent.protocol.tokens import AdminToken, EnrollToken
    from recovery.plans import parse_plan
    from service.receiver.manifest import Manifest

from tests.fuzz.fuzzing import fuzz

MESSAGES = [
    *(kind for kind in vars(messages).values() if isinstance(kind, type) and dataclasses.is_dataclass(kind)),
    Manifest,
]


def one_input(data: bytes) -> None:
    """The first byte says what the rest is taken for."""
    if not data:
        return
    kind, text = data[0], data[1:].decode(errors="surrogateescape")
    if kind < 32:
        _token(text)
    elif kind < 96:
        _plan(data[1:].decode(errors="replace"))
    else:
        _message(MESSAGES[kind % len(MESSAGES)], data[1:])


def _token(text: str) -> None:
    for token in (EnrollToken, AdminToken):
        try:
            parsed = token.parse(text)
        except TokenError as error:
            secret = text.strip().partition("_")[2].rpartition("_")[0]
            assert len(secret) < 22 or secret not in str(error), "an error must not repeat the secret"
        else:
            assert token.parse(parsed.text) == parsed
            assert parsed.secret not in repr(parsed)


def _plan(text: str) -> None:
    with contextlib.suppress(UsageError):
        parse_plan(text)


def _message(kind: type, body: bytes) -> None:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):  # as whoever reads a body does
        return
    assert str(UnderstudyError.from_json(document))
    try:
        message = messages.from_json(kind, document)
    except BadMessage:
        return
    again = json.loads(json.dumps(messages.to_json(message), allow_nan=False))
    assert messages.from_json(kind, again) == message


if __name__ == "__main__":
    fuzz("messages", one_input)
