"""The agent's state folder: who we are, what we protect, and the digest cache.

identity.json  key.pem  certificate.pem  ca.pem     lost: enrol again
protected.json                                      which volumes, in boot order
seen.json                                           how these looked at the last push: to find them under other names
session.json                                        the push under way, so that a restart takes it over at once
volumes/<hash of path>/digests, position.json       cache: lost or doubtful, it is thrown away and a scan follows
lock                                                held while a push runs
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from agent.files import write_whole
from agent.protocol.digests import DigestMap
from agent.protocol.errors import BadMessage, Conflict, UsageError
from agent.protocol.grid import BlockGrid
from agent.protocol.messages import from_json
from agent.volumes.sighting import Sighting

T = TypeVar("T")


def default_state_folder() -> Path:
    """Where the state lies unless --state says otherwise."""
    if sys.platform == "win32":
        return Path(os.environ.get("PROGRAMDATA", r"C:\ProgramData")) / "Understudy"
    return Path("/var/lib/understudy-agent")


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who this agent is to which service."""

    url: str
    server_id: str
    server_name: str
    ca_fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """What a volume's cached digest map was proven equal to: `root` (hex) of the point made then."""

    root: str
    size_bytes: int
    block_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Protected:
    volumes: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    volumes: list[Sighting]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Session:
    session: str | None


class State:
    """One agent's state folder. Raises UsageError where it cannot be used."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()

    def make(self) -> None:
        """See to it that the folder exists and is ours alone."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"the state folder {self.folder} cannot be made: {error.strerror}",
                "run as root, or name another: --state DIR",
            ) from None

    # --- identity and what is protected ---

    def identity(self) -> Identity:
        document = self._read("identity.json")
        if document is None:
            raise UsageError(
                f"this agent has no identity in {self.folder}",
                "enrol it: understudy-agent enroll URL TOKEN (the service prints the line: understudy enroll-token)",
            )
        return self._understood(Identity, document, "identity.json")

    def save_identity(self, identity: Identity, *, key_pem: bytes, certificate_pem: bytes, ca_pem: bytes) -> None:
        """Replace the identity; identity.json last, since its presence means that the rest is there."""
        self.make()
        write_whole(self.key_path, key_pem)
        write_whole(self.certificate_path, certificate_pem)
        write_whole(self.ca_path, ca_pem)
        self._write("identity.json", asdict(identity))

    @property
    def key_path(self) -> Path:
        return self.folder / "key.pem"

    @property
    def certificate_path(self) -> Path:
        return self.folder / "certificate.pem"

    @property
    def ca_path(self) -> Path:
        return self.folder / "ca.pem"

    def save_certificate(self, certificate_pem: bytes) -> None:
        write_whole(self.certificate_path, certificate_pem)

    def protected(self) -> list[str]:
        """The paths to replicate, in boot order; empty if none were named yet."""
        document = self._read("protected.json")
        return [] if document is None else self._understood(_Protected, document, "protected.json").volumes

    def protect(self, paths: list[str]) -> None:
        self.make()
        self._write("protected.json", {"volumes": paths})

    def seen(self) -> dict[str, Sighting]:
        """How the protected disks looked when they were last seen, by path; nothing of those never seen."""
        document = self._read("seen.json")
        if document is None:
            return {}
        try:
            return {one.path: one for one in from_json(_Seen, document).volumes}
        except BadMessage as error:
            raise UsageError(
                f"{self.folder / 'seen.json'} is damaged: {error.message}",
                "look that each protected path leads to its disk on this machine, then remove that file",
            ) from None

    def remember(self, seen: dict[str, Sighting]) -> None:
        """Replace what `seen` tells; nothing is written where it is the same."""
        if seen != self.seen():
            self._write("seen.json", {"volumes": [asdict(one) for one in seen.values()]})

    # --- the push under way ---

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for one push. Raises Conflict if another process of this agent pushes."""
        self.make()
        with _told(self.folder / "lock"):
            file = open(self.folder / "lock", "w")  # noqa: SIM115  # closed below
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Conflict(
                    f"another push of this agent is running ({self.folder} is locked)", "wait until it has ended"
                ) from None
            yield

    def session(self) -> str | None:
        """The push under way; None also where the file is damaged: it only saves waiting."""
        try:
            document = self._read("session.json")
            return from_json(_Session, document).session if document is not None else None
        except (UsageError, BadMessage):
            return None

    def save_session(self, session: str | None) -> None:
        self._write("session.json", {"session": session} if session else None)

    # --- the digest cache ---

    def position(self, path: str) -> Position | None:
        """None also where the file is damaged: without a position there is a scan."""
        try:
            document = self._read(self._volume(path) / "position.json")
            return from_json(Position, document) if document is not None else None
        except (UsageError, BadMessage):
            return None

    def cached_digests(self, path: str, grid: BlockGrid) -> DigestMap:
        return self._map(self._volume(path) / "digests", grid)

    def new_digests(self, path: str, grid: BlockGrid) -> DigestMap:
        """An empty map beside the cached one, for the push under way; anything left of an earlier try is dropped."""
        folder = self._volume(path)
        fresh = folder / "digests.new"
        with _told(fresh):
            folder.mkdir(parents=True, exist_ok=True)
            fresh.unlink(missing_ok=True)
        return self._map(fresh, grid)

    def keep_digests(self, path: str, digests: DigestMap, position: Position) -> None:
        """The new map was committed: it becomes the cached one. A crash in between leaves no position, so no cache."""
        folder = self._volume(path)
        self.forget_digests(path)
        with _told(folder / "digests"):
            digests.flush()
            (folder / "digests.new").replace(folder / "digests")
        self._write(folder / "position.json", asdict(position))

    def forget_digests(self, path: str) -> None:
        position = self._volume(path) / "position.json"
        with _told(position):
            position.unlink(missing_ok=True)

    def _map(self, path: Path, grid: BlockGrid) -> DigestMap:
        with _told(path):
            return DigestMap.open(path, grid)

    def _volume(self, path: str) -> Path:
        return self.folder / "volumes" / hashlib.sha256(path.encode()).hexdigest()[:16]

    # --- files ---

    def _read(self, name: str | Path) -> Any:
        try:
            return json.loads((self.folder / name).read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise UsageError(
                f"{self.folder / name} cannot be read: {error}", "run as the user who enrolled, or enrol again"
            ) from None

    def _understood(self, cls: type[T], document: Any, name: str) -> T:
        try:
            return from_json(cls, document)
        except BadMessage as error:
            raise UsageError(
                f"{self.folder / name} is damaged: {error.message}", "enrol and protect again, or restore the file"
            ) from None

    def _write(self, name: str | Path, document: Any) -> None:
        write_whole(self.folder / name, json.dumps(document).encode())


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """What the system says against making or changing the file becomes a UsageError."""
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"{path} cannot be made or changed: {error.strerror}",
            "free space, check its disk, or run as root",
        ) from None
