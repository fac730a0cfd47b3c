"""Slow and silent lines hold up nobody but their own server."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

from agent.inventory import machine_id
from tests.faults.harness import Agent, Ledger, Service
from tests.faults.hostile import Hostile, request_bytes

BODY_BYTES = 4 << 20


def test_bodies_that_trickle_in_keep_no_other_server_from_pushing(
    service: Service, protected: Agent, image: Path, ledger: Ledger, tmp_path: Path
) -> None:
    with contextlib.ExitStack() as lines:
        for number in range(3):
            agent = Agent(tmp_path / f"slow-{number}", service)
            agent.enroll(f"slow{number:02}")
            hostile = Hostile(agent, machine_id())
            for at in range(8):
                line = lines.enter_context(hostile.connect())
                what = "offer" if at % 2 else "blocks"
                path = f"/agent/v1/sessions/pt-2222222222/volumes/0/{what}"
                line.sendall(request_bytes("POST", path, b"USF1", [f"Content-Length: {BODY_BYTES}"]))
        with open(image, "r+b") as disk:
            disk.write(random.Random(2).randbytes(200_000))
        ledger.reported(protected.push(), image)
    ledger.check(service)
