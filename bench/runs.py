"""python -m bench.runs: what runs are promised to take: panic, drill, failback, and to go on after SIGKILL.

Servers are small ones that answer HTTP (bench/guest.py), under software emulation."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from bench import drill, failback, guest, panic, restart
from bench.estate import GUEST_BYTES, Estate
from bench.measure import BenchError, undo_when_told_to_end
from bench.tables import Row, table

CACHE = Path(__file__).resolve().parent.parent / ".cache"
PARTS = ("panic", "drill", "restart", "failback")


def measure(work: Path, rounds: int, report: Callable[[str], None], parts: tuple[str, ...] = PARTS) -> list[Row]:
    """Raises BenchError."""
    work.mkdir(exist_ok=True)
    rows = []
    if "failback" in parts:
        rows += failback.measure(work / "failback", CACHE, report)
    if others := [part for part in (panic, drill, restart) if part.__name__.rpartition(".")[2] in parts]:
        image = work / "guest.img"
        guest.build(image, GUEST_BYTES, CACHE)
        with Estate(work, image, panic.NAMES) as estate:
            for part in others:
                rows += part.measure(estate, rounds, report)
    return rows


def main() -> int:
    undo_when_told_to_end()
    parser = argparse.ArgumentParser(prog="python -m bench.runs", description=__doc__)
    parser.add_argument("--rounds", type=int, default=1, metavar="N", help="medians of so many (default: 1)")
    parser.add_argument("--only", choices=PARTS, action="append", help="this part; may be repeated")
    options = parser.parse_args()
    CACHE.mkdir(exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix="bench-", dir=CACHE) as folder:
            found = measure(Path(folder), options.rounds, _report, tuple(options.only or PARTS))
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print(table(found))
    return 0 if all(row.holds is not False for row in found) else 1


def _report(line: str) -> None:
    print(f"bench: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
