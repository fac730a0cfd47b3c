"""What the builders of images share: running tools, and a cache whose names say what went into a file."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
SUITE = "bookworm"

Report = Callable[[str], None]


class BuildError(Exception):
    """The image cannot be built; the text says why, and the way out."""


def files(folder: Path) -> Iterator[Path]:
    """All in it that are not made by Python, in order."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield path


def hash_of(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()[:16]


def replace(made: Path, kept: Path, older: str) -> None:
    """Put what was made into the cache, where it takes the place of its predecessors."""
    for path in kept.parent.glob(older):
        path.unlink()
    made.rename(kept)


def host_apt_settings() -> list[str]:
    """What this machine's apt needs to reach its mirror (a proxy, say) the image's building needs too."""
    names = ["Acquire::http::Proxy", "Acquire::https::Proxy", "Acquire::Check-Valid-Until", "Acquire::Check-Date"]
    if shutil.which("apt-config") is None:
        return []
    return run(["apt-config", "dump", "--no-empty", *names]).splitlines()


def run(command: list[str | Path], *, stdin: str = "", owner: bool = False) -> str:
    """Run a tool; returns its output. `owner`: as root, or as a user namespace's root. Raises BuildError."""
    if owner and os.geteuid() != 0:
        command = ["unshare", "--user", "--map-root-user", "--map-auto", "--", *command]
    environment = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin", "LC_ALL": "C.UTF-8"}
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, env=environment, umask=0o022)
    except FileNotFoundError:
        raise BuildError(f"{command[0]} is not installed; run: make setup") from None
    if done.returncode != 0:
        last = "\n".join((done.stderr or done.stdout).strip().splitlines()[-8:])
        raise BuildError(f"{command[0]} failed (exit {done.returncode}):\n{last}")
    return done.stdout


def mirrors() -> list[str]:
    """Where mmdebstrap gets packages of SUITE: as this machine does, if it is one; empty: from Debian's own."""
    sources = Path("/etc/apt/sources.list.d/debian.sources")
    return [str(sources)] if sources.exists() and SUITE in sources.read_text() else []
