"""The data folder: one process has it at a time, and an operator's token lies in it."""

from __future__ import annotations

import contextlib
import fcntl
import secrets
from collections.abc import Iterator
from pathlib import Path

from agent.protocol.errors import Conflict, StorageError
from agent.protocol.tokens import AdminToken
from service.files import read_bytes, write_private


def admin_token(data: Path, ca_fingerprint: str) -> AdminToken:
    """The operator's token; made at the first start."""
    path = data / "admin-token"
    content = read_bytes(path)
    known = AdminToken.parse(content.decode(errors="replace")) if content is not None else None
    if known is not None and known.ca_fingerprint == ca_fingerprint:
        return known
    # a CA that was made anew changes whom the token vouches for, not the secret
    token = AdminToken(known.secret if known else secrets.token_urlsafe(32), ca_fingerprint)
    write_private(path, token.text.encode() + b"\n")
    return token


@contextlib.contextmanager
def owned(data: Path) -> Iterator[None]:
    """The data folder, made if need be, for this process alone. Raises Conflict, StorageError."""
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = open(data / ".lock", "w")  # noqa: SIM115  # held until the process ends
    except OSError as error:
        raise StorageError(f"{data} cannot be used: {error.strerror}", "name another folder: --data DIR") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(f"another service runs on {data} already", "stop it, or name another folder") from None
        yield
