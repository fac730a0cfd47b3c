"""One bit flips in any file that a stopped service keeps: it starts, or says in one line why not; whatever is asked of
it then ends in order; and a point that is not what it was is never called sound."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.harness import Agent, Ledger, Service, enrolled, nothing_left_behind, sum_of
from tests.faults.images import change_image, make_image
from tests.patience import PATIENCE_SECONDS
from tests.seeds import seeded
from tests.service.receiver.verify.rot import flip

FLIPS_EACH = 2

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]


@dataclass
class Kept:
    """A service that was stopped, and a copy of all that it keeps."""

    service: Service
    agent: Agent
    ledger: Ledger
    image: Path
    copy: Path

    def files(self, part: str) -> list[Path]:
        """Relative to the data folder; without those that say nothing."""
        found = [path for path in self.copy.glob(part) if path.is_file() and path.stat().st_size]
        assert found
        return sorted(path.relative_to(self.copy) for path in found)

    def put_back(self) -> None:
        shutil.rmtree(self.service.data)
        shutil.copytree(self.copy, self.service.data, symlinks=True)
        self.service.log_path.unlink(missing_ok=True)


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    service = Service(tmp_path / "service")
    service.start()
    agent = enrolled(tmp_path / "agent", service, "web01")
    image = make_image(tmp_path / "disk.raw", random.Random(1), 4 << 20)
    agent.protect(image)
    ledger = Ledger(agent, tmp_path)
    for seed in (2, 3):
        ledger.reported(agent.push(), image)
        change_image(image, random.Random(seed))
    service.stop()
    shutil.copytree(service.data, tmp_path / "copy", symlinks=True)
    yield Kept(service, agent, ledger, image, tmp_path / "copy")
    service.stop()
    assert nothing_left_behind(tmp_path) == []


def starts(service: Service) -> bool:
    """Else it has said why not, in one line."""
    with open(service.log_path, "a") as log:
        process = subprocess.Popen(service.command(), stdout=subprocess.PIPE, stderr=log, text=True)
    assert process.stdout is not None
    if process.stdout.readline().startswith("ready"):
        service._process = process
        return True
    process.stdout.close()
    assert process.wait(PATIENCE_SECONDS) == 1, service.log()
    assert service.log().strip().splitlines()[-1].startswith("understudy: "), service.log()
    return False


def in_order(code: int, complaint: str) -> None:
    assert code in (0, 1)
    assert code == 0 or complaint.startswith("understudy"), complaint
    assert "Traceback" not in complaint
    assert "log has the details" not in complaint, complaint


@pytest.mark.parametrize("part", ["*", "pki/*", "site/*/documents/*", "site/*/volume-*/*", "receiver/*/*", "dedupe/*"])
def test_no_flipped_bit_is_met_with_a_traceback_or_believed(kept: Kept, part: str) -> None:
    rng = seeded()
    sums = kept.ledger.sums
    for relative in [path for path in kept.files(part) for _ in range(FLIPS_EACH)]:
        kept.put_back()
        path = kept.service.data / relative
        at, bit = rng.randrange(path.stat().st_size), rng.randrange(8)
        flip(path, at, bit)
        print(f"{relative}: byte {at}, bit {bit}", flush=True)
        if not starts(kept.service):
            assert "Traceback" not in kept.service.log(), kept.service.log()
            continue
        try:
            verified = kept.service.ask("verify", "--all", "--json")
            in_order(verified.code, verified.err)
            sound = {one["point"] for one in json.loads(verified.out) if one["ok"]} if verified.out else set()
            for point, (expected,) in sums.items():
                assert point not in sound or kept.ledger.content(kept.service, point) == expected
            in_order((ran := kept.service.ask("panic", "web01", "--drill", "--dry-run")).code, ran.err)
            in_order((pushed := kept.agent.push()).code, pushed.err)
            if pushed.code == 0:
                again = kept.service.ask("verify", str(pushed.document["point"]))
                in_order(again.code, again.err)
                assert again.code or kept.ledger.content(kept.service, str(pushed.document["point"])) == sum_of(
                    kept.image
                )
        finally:
            kept.service.stop()
        assert "Traceback" not in kept.service.log(), kept.service.log()[-6000:]
