"""Many at once: 50 agents that push together into one receiver, and the heartbeats of 5,000.

python -m bench.crowd [--agents 50] [--mib 128] [--heartbeats 5000] [--only push|heartbeats]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from bench import heartbeats, pushes
from bench.measure import undo_when_told_to_end


def main() -> int:
    undo_when_told_to_end()
    parser = argparse.ArgumentParser(prog="python -m bench.crowd")
    parser.add_argument("--agents", type=int, default=50)
    parser.add_argument("--mib", type=int, default=128)
    parser.add_argument("--heartbeats", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=40)
    parser.add_argument("--only", choices=("push", "heartbeats"))
    parser.add_argument("--work", help="where disks and replicas go; some GiB")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="understudy-crowd-", dir=options.work) as folder:
        if options.only != "heartbeats":
            rows += pushes.rows(pushes.measure(Path(folder), options.agents, options.mib, _report))
        if options.only != "push":
            rows += heartbeats.rows(heartbeats.measure(Path(folder), options.heartbeats, options.seconds))
    print("| what | figure | limit | holds |", "| --- | --- | --- | --- |", sep="\n")
    for what, figure, limit, holds in rows:
        print(f"| {what} | {figure} | {limit} | {'' if holds is None else 'yes' if holds else '**no**'} |")
    return 0


def _report(line: str) -> None:
    print(f"bench: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
