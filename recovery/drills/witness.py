"""What a drill needs of whoever keeps its proof: pictures, filesystem checks, signed evidence."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from recovery.runs import Run


class Soundness(enum.StrEnum):
    SOUND = "sound"
    DAMAGED = "damaged"
    UNKNOWN = "unknown"
    """It could not be looked at; `said` has the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedFilesystem:
    """`where` names volume and partition for people; `said` are the checker's last words, unless it is sound."""

    where: str
    kind: str
    soundness: Soundness
    said: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckJob:
    """A point's volumes, in boot order, as Site.snapshot_location names them: they may be read, and nothing else.

    `stopped` is asked while something is awaited: the check is to be given up when it says yes."""

    run_id: str
    server_id: str
    volumes: Sequence[str]
    stopped: Callable[[], bool] = lambda: False


class Witness(Protocol):
    """All calls block, and may be repeated: what was kept before is replaced. They raise StorageError."""

    def keep_picture(self, run_id: str, server_id: str, picture: bytes) -> dict[str, Any]:
        """Keep what a screen showed; returns what the step's result says of it (`file`, `sha256`)."""
        ...

    def why_unchecked(self) -> str | None:
        """Why no filesystem can be checked here; None: they can."""
        ...

    def check_filesystems(self, job: CheckJob) -> list[CheckedFilesystem]:
        """Look at every filesystem known to have a checker. Raises UnderstudyError when that cannot be done."""
        ...

    def testify(self, run: Run) -> dict[str, Any]:
        """Write and sign the evidence of a drill whose other steps are over; returns what the result says of it."""
        ...
