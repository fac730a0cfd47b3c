"""What was measured as rows: each beside its limit or its peer; and the rows as Markdown and as JSON."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from bench.boot import LIMIT_SECONDS, Boots
from bench.engine import Engine
from bench.measure import Cost
from bench.replication import DISK, PEERS, READERS, STEPS, Replication

MIB = 1 << 20
TARGET = "target"
# (step, measure, peer) -> the most that the ratio may be. Bytes on the wire are those of an image that is made of the
# machine's own files: beside a peer's in the same run they say what a target in MiB says of ../shared/facts' image.
RATIOS = {
    ("full", "s", "borg"): 0.55,
    ("full", "s", "restic"): 0.5,
    ("full", "s", "rsync"): 1.0,
    ("full", "CPU s", "borg"): 0.8,
    ("full", "wire MiB", "restic"): 1040 / 1037,
    ("again", "s", "threads"): 2.0,
    ("pull-empty", "s", "restic"): 1.0,
    ("pull-yesterday", "s", "restic"): 1.0,
}
# (step, measure) -> the figure to stay below, on the machine and the image of ../shared/facts/speed.md
TARGETS = {
    ("full", "wire MiB"): 1040.0,
    ("again", "s"): 0.8,
    ("day", "s"): 1.5,
    ("day", "wire MiB"): 22.0,
    ("pull-empty", "s"): 4.5,
    ("pull-yesterday", "s"): 1.5,
}

REASONS = {
    ("full push", "CPU s"): (
        "60 % is zstd, and what takes less takes more on the wire; borg's server stores what it gets, ours unpacks it, "
        "proves every block and writes a disk that boots"
    ),
    ("pull onto an empty file", "s"): "where one disk serves both ends, all data passes it three times",
    ("pull onto yesterday's image", "s"): (
        "all is read and hashed, and blocks of five times what differs are read at both ends, written and read back"
    ),
    ("clone of a protected server", "s"): (
        "at first the disk is busy (what is copied is read, and written), then the processors (what is new is packed, "
        "and unpacked)"
    ),
}
"""(what, measure) -> why a limit is not reached on two processors and one disk; see docs/performance.md."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One comparison, with a peer or with a target. `limit` is None where the ratio is information. `missing` says why
    there is no figure."""

    what: str
    measure: str
    peer: str
    ours: float | None = None
    theirs: float | None = None
    limit: float | None = None
    missing: str = ""

    @property
    def ratio(self) -> float | None:
        return self.ours / self.theirs if self.ours is not None and self.theirs else None

    @property
    def holds(self) -> bool | None:
        return None if self.limit is None or self.ratio is None else self.ratio <= self.limit


DAY_BY_PAGES = 22 / 19.6
"""The day's limit on the wire by what its pages pack to at zstd's level 3, both by ../shared/facts/speed.md."""


def replication_rows(found: Replication, packed_bytes: int) -> list[Row]:
    """Every step beside every peer, and beside its targets. `packed_bytes`: of the day's pages."""
    rows = []
    for step, what in STEPS.items():
        ours = found.median("understudy", step)
        for measure in ("s", "CPU s", "wire MiB"):
            for (target_step, target_measure), target in TARGETS.items():
                if (step, measure) == (target_step, target_measure):
                    rows.append(_against(what, measure, TARGET, ours, target, 1.0))
            if (step, measure) == ("day", "wire MiB"):
                rows.append(_against(what, measure, "its pages, zstd-3", ours, packed_bytes / MIB, DAY_BY_PAGES))
            if step == "again" and measure == "s":
                for mode, words in READERS.items():
                    theirs = _figure(found.median(mode, step), measure)
                    rows.append(_against(what, measure, words, ours, theirs, RATIOS.get((step, measure, mode))))
            if (step, measure) == ("pull-empty", "s"):
                rows.append(_against(what, measure, DISK, ours, _figure(found.median(DISK, step), measure), None))
            for peer in PEERS:
                missing = "" if found.median(peer.name, step) else f"not installed: {', '.join(peer.needs)}"
                theirs = _figure(found.median(peer.name, step), measure)
                if theirs is not None or missing:
                    limit = RATIOS.get((step, measure, peer.name))
                    rows.append(_against(what, measure, peer.name, ours, theirs, limit, missing))
    return rows


def engine_rows(found: Engine) -> list[Row]:
    others = [
        ("clone of a protected server", found.clone, 455.0, 3.0, found.restic_clone, 455 / 451),
        ("reinstalled sibling", found.reinstall, 475.0, None, found.restic_reinstall, 475 / 551),
    ]
    rows = []
    for what, cost, wire_mib, seconds, theirs, most in others:
        missing = "" if cost else "needs ../shared/workload"
        rows.append(_against(what, "wire MiB", TARGET, cost, wire_mib, 1.0, missing))
        if theirs is not None:
            rows.append(_against(what, "wire MiB", "restic", cost, _figure(theirs, "wire MiB"), most))
            rows.append(_against(what, "s", "restic", cost, theirs.seconds, None))
        if seconds is not None:
            rows.append(_against(what, "s", TARGET, cost, seconds, 1.0, missing))
    rows.append(
        Row(
            what="own memory of the agent, full push",
            measure="MiB",
            peer=TARGET,
            ours=found.agent_mib,
            theirs=150.0,
            limit=1.0,
        )
    )
    rows.append(
        Row(
            what="own memory of the receiver, full push",
            measure="MiB",
            peer=TARGET,
            ours=found.service_mib,
            theirs=250.0,
            limit=1.0,
        )
    )
    rows.append(
        _against("no change, 16 times as large by holes", "s", "the image alone", found.large, found.small.seconds, 1.5)
    )
    return rows


def _against(
    what: str, measure: str, peer: str, ours: Cost | None, theirs: float | None, limit: float | None, missing: str = ""
) -> Row:
    return Row(
        what=what, measure=measure, peer=peer, ours=_figure(ours, measure), theirs=theirs, limit=limit, missing=missing
    )


def _figure(cost: Cost | None, measure: str) -> float | None:
    if cost is None:
        return None
    if measure == "wire MiB":
        return None if cost.wire_bytes is None else cost.wire_bytes / MIB
    return cost.seconds if measure == "s" else cost.cpu_seconds


def table(rows: list[Row]) -> str:
    lines = ["| what | measure | ours | beside | its figure | ratio | limit | holds |", "| --- " * 8 + "|"]
    for row in rows:
        figures = f"{_number(row.ours)} | {row.peer} | {_number(row.theirs)} | {_number(row.ratio)}"
        lines.append(
            f"| {row.what} | {row.measure} | {figures} | {_number(row.limit)} | {row.missing or _verdict(row.holds)} |"
        )
    missed = {(row.what, row.measure) for row in rows if row.holds is False}
    lines += [
        f"\nWhy not, {what}, {measure}: {REASONS[what, measure]}." for what, measure in sorted(missed & REASONS.keys())
    ]
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
