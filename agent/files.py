"""Small files of the state folder: whole or absent, whatever happens to the machine meanwhile, and private."""

from __future__ import annotations

import os
from pathlib import Path

from agent.protocol.errors import UsageError


def write_whole(path: Path, content: bytes) -> None:
    """Whoever reads sees the old file or the new one, also after a power cut; 0600. Raises UsageError."""
    fresh = path.with_name(path.name + ".tmp")
    try:
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
        if os.name == "posix":  # elsewhere a folder cannot be opened
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}", "free space, or run as root") from None
