"""A plan of five servers in three groups: our panic beside booting the same images by hand, in the same order."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from bench.by_hand import ByHand, command_line
from bench.estate import Estate, server
from bench.tables import Row

GROUPS = (("db01",), ("app01", "app02"), ("web01", "web02"))
NAMES = tuple(name for group in GROUPS for name in group)
LIMIT_SECONDS, LIMIT_RATIO = 5.0, 1.1
PLAN = {"plan": "shop", "groups": [{"servers": [server(name) for name in group]} for group in GROUPS]}


def measure(estate: Estate, rounds: int, report: Callable[[str], None]) -> list[Row]:
    """Raises BenchError."""
    estate.apply(PLAN)
    commands, rtos, by_hand = [], [], []
    for number in range(1, rounds + 1):
        seconds, run = estate.run("panic", "shop")
        lines = _command_lines(estate.service.data)
        estate.end(run)
        commands.append(seconds)
        rtos.append(float(run["rto_seconds"]))
        by_hand.append(_boot(estate, lines))
        report(f"round {number}/{rounds}: panic {seconds:.1f} s, by hand {by_hand[-1]:.1f} s")
    theirs = statistics.median(by_hand)
    limit = max(LIMIT_RATIO, 1 + LIMIT_SECONDS / theirs)
    what = f"panic of {len(NAMES)} servers in {len(GROUPS)} groups to their HTTP answers"
    found = {"the command": statistics.median(commands), "its RTO": statistics.median(rtos)}
    return [
        Row(what=f"{what}: {name}", measure="s", peer="by hand", ours=ours, theirs=theirs, limit=limit)
        for name, ours in found.items()
    ]


def _command_lines(data: Path) -> dict[str, list[str]]:
    """QEMU's, by server."""
    return {
        json.loads((folder / "spec.json").read_bytes())["spec"]["server_name"]: command_line(folder / "pid")
        for folder in (data / "site/instances").iterdir()
        if (folder / "pid").exists()
    }


def _boot(estate: Estate, lines: dict[str, list[str]]) -> float:
    """Group by group; those of one group side by side."""
    os.sync()
    with contextlib.ExitStack() as running:
        began = time.monotonic()
        for group in GROUPS:
            machines = [
                running.enter_context(ByHand(lines[name], estate.image(name), estate.folder / f"by-hand-{name}"))
                for name in group
            ]
            for machine in machines:
                machine.await_answer("/health")
        return time.monotonic() - began
