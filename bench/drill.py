"""A drill from the press of the button to its signed verdict, and what its closing steps take of that."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from bench.estate import Estate, server
from bench.measure import timed
from bench.service import PROGRAMS
from bench.tables import Row

NAME = "web01"
CLOSING = ("picture", "filesystems", "evidence")


def measure(estate: Estate, rounds: int, report: Callable[[str], None]) -> list[Row]:
    """Raises BenchError; also when what a drill signed does not verify."""
    estate.apply({"plan": "one", "groups": [{"servers": [server(NAME)]}]})
    seconds, rtos, closing = [], [], []
    for number in range(1, rounds + 1):
        took, run = estate.run("panic", "one", "--drill")
        checked = _check(estate, run, number)
        estate.end(run)
        seconds.append(took)
        rtos.append(float(run["rto_seconds"]))
        closing.append({step["name"].split()[0]: step for step in run["steps"] if step["closing"]})
        report(f"round {number}/{rounds}: drill {took:.1f} s, RTO {rtos[-1]:.1f} s")
    rows = [
        Row(
            what="drill of one server, from the press to its signed verdict",
            measure="s",
            peer="its RTO",
            ours=statistics.median(seconds),
            theirs=statistics.median(rtos),
        )
    ]
    for name in CLOSING:
        took = statistics.median(steps[name]["seconds"] for steps in closing)
        note = closing[-1][name]["result"].get("note") or ""
        note = checked if name == "evidence" else note
        rows.append(Row(what=f"closing step: {name}", measure="s", peer=note, ours=took))
    return rows


def _check(estate: Estate, run: dict[str, Any], number: int) -> str:
    """The evidence, verified with the public key alone, in words."""
    out = estate.folder / f"evidence-{number}"
    estate.service.ask("evidence", run["id"], "--out", out)
    key = estate.service.data / "pki/sign.pub"
    timed([PROGRAMS / "understudy", "evidence", "verify", out / f"{run['id']}.json", "--key", key])
    return "verified with the public key alone"
