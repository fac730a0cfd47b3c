"""Bits that flip at the site of a running service: found, named and healed by its command line."""

from __future__ import annotations

import json
import random
import sqlite3
import subprocess
import time
from pathlib import Path

import pytest

from tests.faults.harness import BINARIES, Agent, Ledger, Service
from tests.faults.images import change_image
from tests.service.receiver.verify.rot import flip, place_of

BLOCK = 65536


def block_with_data(image: Path) -> bytes:
    content = image.read_bytes()
    blocks = [content[at : at + BLOCK] for at in range(0, len(content), BLOCK)]
    return next(block for block in blocks if len(set(block)) > 200 and blocks.count(block) == 1)


def audited(service: Service) -> list[str]:
    with sqlite3.connect(service.data / "understudy.sqlite") as database:
        found = [row[0] for row in database.execute("SELECT detail FROM audit WHERE action = 'verify.heal'")]
    database.close()
    return found


def test_rot_is_named_pushed_again_and_healed(protected: Agent, image: Path, ledger: Ledger, service: Service) -> None:
    (point,) = [found["id"] for found in service.points("web01")]
    path = service.chain(protected.server_id) / f"{point}.qcow2"
    flip(path, place_of(path, block_with_data(image)) + 7)
    found = service.ask("verify", "--all", "--json")
    assert found.code == 1
    (result,) = json.loads(found.out)
    (finding,) = result["findings"]
    assert (result["ok"], finding["part"], finding["where"]) == (False, "data", str(path))
    assert service.ask("verify", "--heal", point).code == 1
    assert audited(service) == []
    ledger.reported(protected.push(), image)
    healed = service.ask("verify", "--heal", point)
    assert "sound again" in healed.out, healed
    assert len(audited(service)) == 1
    ledger.check(service)


@pytest.mark.long
def test_a_damaged_manifest_is_told_of_also_after_a_restart_and_healed(
    protected: Agent, image: Path, ledger: Ledger, service: Service
) -> None:
    (point,) = [found["id"] for found in service.points("web01")]
    flip(service.data / "site" / protected.server_id / "documents" / f"{point}.json", 77)
    service.stop()
    service.start()
    assert service.points("web01") == []
    assert point in service.ask("verify", "--all").complaint
    assert service.ask("verify", "--all", "--heal").code == 0
    ledger.check(service)


@pytest.mark.long
def test_who_leaves_ends_the_verification(agent: Agent, ledger: Ledger, service: Service, tmp_path: Path) -> None:
    image = tmp_path / "large.raw"
    image.write_bytes(random.Random(1).randbytes(48 << 20))
    change_image(image, random.Random(2))
    agent.protect(image)
    point = ledger.reported(agent.push(), image)
    for delay_seconds in (0.25, 0.4, 0.6):
        asking = subprocess.Popen(
            [BINARIES / "understudy", "verify", point, "--data", service.data],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(delay_seconds)
        asking.kill()
        asking.wait()
    assert service.ask("verify", point).code == 0
    assert "Traceback" not in service.log()
