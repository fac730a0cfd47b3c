"""What was measured as rows: each beside its limit or its peer; and the rows as Markdown and as JSON."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from bench.boot import LIMIT_SECONDS, Boots
from bench.measure import Cost
from bench.peers import Restic, Rsync
from bench.replication import READERS, STEPS, Replication

MIB = 1 << 20
PUSH_LIMIT, SCAN_LIMIT, PULL_LIMIT = 1.0, 3.0, 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One comparison. `limit` is None where the figure is information. `missing` says why there is no figure."""

    what: str
    peer: str
    ours: Cost | None = None
    theirs: Cost | None = None
    limit: float | None = None
    missing: str = ""

    @property
    def ratio(self) -> float | None:
        return self.ours.seconds / self.theirs.seconds if self.ours and self.theirs else None

    @property
    def holds(self) -> bool | None:
        return None if self.limit is None or self.ratio is None else self.ratio <= self.limit


def replication_rows(found: Replication) -> list[Row]:
    """Every step beside every peer; the limits of issue 2 where there are any."""
    rows = []
    for step, what in STEPS.items():
        ours = found.median("understudy", step)
        if step == "again":
            rows += [
                Row(what=what, peer=words, ours=ours, theirs=found.median(mode, step), limit=SCAN_LIMIT)
                for mode, words in READERS.items()
            ]
        for peer in (Restic, Rsync):
            theirs = found.median(peer.name, step)
            missing = "" if theirs else f"not installed: apt-get install {' '.join(peer.needs)}"
            limit = _limit(step, peer.name)
            rows.append(Row(what=what, peer=peer.name, ours=ours, theirs=theirs, limit=limit, missing=missing))
    return rows


def _limit(step: str, peer: str) -> float | None:
    if step == "full":
        return PUSH_LIMIT
    return PULL_LIMIT if step.startswith("pull") and peer == Restic.name else None


def replication_table(rows: list[Row]) -> str:
    lines = [
        "| what | peer | ours, s | peer, s | ratio | limit | holds | CPU s, ours / peer | wire MiB, ours / peer |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        if row.missing or row.ours is None or row.theirs is None:
            lines.append(f"| {row.what} | {row.peer} | | | | {_number(row.limit)} | {row.missing} | | |")
            continue
        ours, theirs = row.ours, row.theirs
        lines.append(
            f"| {row.what} | {row.peer} | {ours.seconds:.2f} | {theirs.seconds:.2f} | {_number(row.ratio)} "
            f"| {_number(row.limit)} | {_verdict(row.holds)} | {ours.cpu_seconds:.1f} / {theirs.cpu_seconds:.1f} "
            f"| {_mib(ours)} / {_mib(theirs)} |"
        )
    return "\n".join(lines)


def boot_table(boots: Boots) -> str:
    return "\n".join([
        "| what | panic command, s | rto_seconds | by hand, s | overhead, s | limit, s | holds |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        f"| boot until HTTP 200 ({boots.accel}) | {boots.command_seconds:.1f} | {boots.rto_seconds:.1f} "
        f"| {boots.by_hand_seconds:.1f} | {boots.overhead_seconds:+.1f} | {LIMIT_SECONDS:g} "
        f"| {_verdict(boots.overhead_seconds < LIMIT_SECONDS)} |",
    ])  # fmt: skip


def row_document(row: Row) -> dict[str, object]:
    return {**dataclasses.asdict(row), "ratio": row.ratio, "holds": row.holds}


def boot_document(boots: Boots) -> dict[str, object]:
    overhead = boots.overhead_seconds
    return {
        **dataclasses.asdict(boots),
        "overhead_seconds": overhead,
        "limit_seconds": LIMIT_SECONDS,
        "holds": overhead < LIMIT_SECONDS,
    }


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _verdict(holds: bool | None) -> str:
    return {True: "yes", False: "**no**", None: ""}[holds]


def _mib(cost: Cost) -> str:
    return "-" if cost.wire_bytes is None else f"{cost.wire_bytes / MIB:.1f}"
