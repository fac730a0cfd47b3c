"""What a verification found, as plain data."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any


class Part(enum.StrEnum):
    """Which part of a point is not as it should be."""

    MANIFEST = "manifest"
    ROW = "row"
    DIGESTS = "digests"
    STRUCTURE = "structure"
    """How the site stores the volume: the metadata of a qcow2 file."""
    DATA = "data"
    DATABASE = "database"
    """Its file, as a whole; no point's."""


@dataclass(slots=True, kw_only=True)
class Finding:
    """One thing that is damaged. `blocks`: [first, last] of each run of a volume's damaged blocks. `points`: the ids of
    all that suffer from it. `healed` says what was done, and is empty if nothing could be."""

    part: Part
    what: str
    where: str
    points: list[str]
    way_out: str
    volume: int | None = None
    blocks: list[tuple[int, int]] = field(default_factory=list)
    healed: str = ""

    def __str__(self) -> str:
        others = f"; affects {', '.join(self.points)}" if len(self.points) > 1 else ""
        return f"{self.what} [{self.where}]{others}"


@dataclass(slots=True, kw_only=True)
class Verdict:
    """What is known of one point after it was verified. `read_bytes`: what was read from the medium."""

    point: str
    findings: list[Finding] = field(default_factory=list)
    read_bytes: int = 0
    verified_at: str | None = None

    @property
    def sound(self) -> bool:
        """Nothing is damaged, or nothing any more."""
        return all(finding.healed for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "sound": self.sound}


def as_runs(blocks: Iterable[int]) -> list[tuple[int, int]]:
    """Rising block numbers as [first, last] of each run."""
    runs: list[tuple[int, int]] = []
    for block in blocks:
        if runs and runs[-1][1] == block - 1:
            runs[-1] = (runs[-1][0], block)
        else:
            runs.append((block, block))
    return runs


def in_words(runs: list[tuple[int, int]], most: int = 8) -> str:
    """`block 7`, `blocks 7, 9-12 and 40 more runs`."""
    words = [str(first) if first == last else f"{first}-{last}" for first, last in runs[:most]]
    more = f" and {len(runs) - most} more runs" if len(runs) > most else ""
    one = len(runs) == 1 and runs[0][0] == runs[0][1]
    return f"block{'' if one else 's'} {', '.join(words)}{more}"
