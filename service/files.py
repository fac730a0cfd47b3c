"""Small files: ours, that must be whole or absent, and private; and those that an operator names."""

from __future__ import annotations

import os
from pathlib import Path

from agent.protocol.errors import StorageError, UsageError


def write_private(path: Path, content: bytes) -> None:
    """Replace `path` atomically and durably; readable by us alone (0600). Raises StorageError."""
    fresh = path.with_name(path.name + ".tmp")
    try:
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            os.fchmod(file.fileno(), 0o600)  # a leftover of ours may have had other rights
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror}", "free space, or check the rights") from None


def read_bytes(path: Path) -> bytes | None:
    """The content; None if there is no such file. Raises StorageError."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}", "check the rights and the disk") from None


def read_named(path: str | Path, most_bytes: int) -> bytes:
    """The beginning of a file that an operator named. Raises UsageError."""
    try:
        with open(path, "rb") as file:
            return file.read(most_bytes)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", "check the name") from None
