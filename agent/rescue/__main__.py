"""python -m agent.rescue TERMINAL...: the rescue program on these terminals (none named: the one it was started at)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from pathlib import Path

from agent.protocol.buffers import keep_large_buffers
from agent.rescue.console import Console
from agent.rescue.machine import RescueMachine
from agent.rescue.rescue import Rescue
from agent.rescue.way import Way
from agent.state import State

FOLDER = Path("/run/understudy")


def main(terminals: list[str]) -> int:
    keep_large_buffers()
    FOLDER.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(filename=FOLDER / "rescue.log", level=logging.INFO)
    descriptors = [0]
    if terminals:
        descriptors = []
        for name in terminals:
            with contextlib.suppress(OSError):
                descriptors.append(os.open(name, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK))
    asyncio.run(_run(descriptors))
    return 0


async def _run(descriptors: list[int]) -> None:
    console = Console(descriptors)
    try:
        machine = RescueMachine()
        await Rescue(console, machine, Way(console, machine, State(FOLDER / "agent"))).run()
    finally:
        console.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
