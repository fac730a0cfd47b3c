"""Rounds of harm chosen by a seed: after each, a clean push succeeds, and every point ever made is as it was.

A failure prints its seed; UNDERSTUDY_SEED=n repeats it. What a seed decides is what is done to whom and when; threads
and processes still race, so a seed is repeated a few times before it is believed to pass.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.harness import Agent, Ledger, Service, ended, nothing_left_behind
from tests.faults.images import change_image, make_image, resize_image
from tests.faults.machine import Ballast, mounted
from tests.faults.relay import Relay, random_fault

KEEP = 3
SEED = os.environ.get("UNDERSTUDY_SEED")


class Simulation:
    def __init__(self, folder: Path, seed: int) -> None:
        self.rng = random.Random(seed)
        self._resources = contextlib.ExitStack()
        with self._resources:  # what is made goes also when the rest cannot be
            self._make(folder, seed)
            self._resources = self._resources.pop_all()

    def _make(self, folder: Path, seed: int) -> None:
        self.ballast: Ballast | None = None
        if os.geteuid() == 0:  # a disk of its own, which can be filled
            disk = mounted("tmpfs", folder / "service", "-t", "tmpfs", "-o", "size=800m")
            self.ballast = Ballast(self._resources.enter_context(disk))
        self.service = Service(folder / "service", "--keep", str(KEEP))
        self.service.start()
        self._resources.callback(self.service.stop)
        self.relay = self._resources.enter_context(Relay(self.service.port, seed))
        self.agent = Agent(folder / "agent", self.service, url=self.relay.url)
        self.agent.enroll("web01")
        sizes = [self.rng.randrange(1, 40_000) * 512 for _ in range(self.rng.choice([1, 1, 2]))]
        self.images = [make_image(folder / f"disk-{n}.raw", self.rng, size) for n, size in enumerate(sizes)]
        self.agent.protect(*self.images)
        self.ledger = Ledger(self.agent, folder, keep=KEEP)
        self.push_seconds = 1.0

    def close(self) -> None:
        self._resources.close()

    def round(self) -> str:
        """One change, one harm, one clean push. Returns what was done."""
        for image in self.images:
            change_image(image, self.rng, self.rng.randrange(1, 40))
            if self.rng.random() < 0.2:
                resize_image(image, self.rng)
        harm: Callable[[], str] = self.rng.choice(
            [self.hurt_the_line, self.kill_the_agent, self.kill_the_service, self.kill_in_retention, self.tamper]
            + [self.fill_the_disk] * (self.ballast is not None)
        )
        done = harm()
        self.relay.disarm()
        if not self.service.running:
            self.service.start()
        self.ledger.check(self.service, *self.images)
        began = time.monotonic()
        pushed = self.agent.push()
        self.push_seconds = time.monotonic() - began
        # a commit that a full disk cut when there was no way back is carried on by this push: two points, in order
        listed = self.ledger.check(self.service, *self.images)
        assert self.ledger.reported(pushed, *self.images) == listed[0]
        return done

    def note(self, pushing: object) -> None:
        """A push under fire may end either way, but in order."""
        ran = ended(pushing)  # type: ignore[arg-type]
        if ran.code == 0:
            self.ledger.reported(ran, *self.images)
        elif ran.code == 1:
            assert "Traceback" not in ran.err, ran.err
            assert ran.complaint
        else:
            assert ran.code < 0, ran.err

    def moment(self) -> float:
        """When to strike, in seconds from a push's beginning: often near its end, where the commit is."""
        return self.push_seconds * self.rng.choice([self.rng.random(), self.rng.uniform(0.6, 1.1)])

    # --- harms ---

    def hurt_the_line(self) -> str:
        fault = random_fault(self.rng, self.rng.choice([5_000, 500_000, 8 << 20]))
        self.relay.arm(fault)
        self.note(self.agent.begin("push", "--json"))
        return str(fault)

    def kill_the_agent(self) -> str:
        seconds = self.moment()
        pushing = self.agent.begin("push", "--json")
        time.sleep(seconds)
        pushing.kill()
        self.note(pushing)
        return f"agent killed after {seconds:.3f} s"

    def kill_the_service(self) -> str:
        seconds, away_seconds = self.moment(), self.rng.uniform(0.0, 2.0)
        pushing = self.agent.begin("push", "--json")
        time.sleep(seconds)
        self.service.kill()
        back = threading.Timer(away_seconds, self.service.start)
        back.start()
        self.note(pushing)
        back.join()
        return f"service killed after {seconds:.3f} s, away for {away_seconds:.3f} s"

    def kill_in_retention(self) -> str:
        """Retention takes away what is superfluous some time after a commit; most often it is caught at that."""
        self.note(self.agent.begin("push", "--json"))
        seconds = self.rng.uniform(0.0, 0.15)
        documents = self.service.data / "site" / self.agent.server_id / "documents"
        until = time.monotonic() + 8
        while not list(documents.glob("*.deleting.json")) and time.monotonic() < until:
            time.sleep(0.001)
        time.sleep(seconds)
        self.service.kill()
        return f"service killed {seconds:.3f} s into retention"

    def fill_the_disk(self) -> str:
        assert self.ballast is not None
        seconds = self.moment()
        pushing = self.agent.begin("push", "--json")
        time.sleep(seconds)
        self.ballast.fill()
        killed = self.rng.random() < 0.3
        if killed:
            time.sleep(self.rng.uniform(0, 0.3))
            self.service.kill()
            self.ballast.empty()
            self.service.start()
        self.note(pushing)
        self.ballast.empty()
        return f"disk full after {seconds:.3f} s{', and then killed' if killed else ''}"

    def tamper(self) -> str:
        """The agent's cache of what the service holds is not to be believed."""
        files = sorted(path for path in (self.agent.folder / "volumes").rglob("*") if path.is_file())
        for path in files:
            match self.rng.randrange(4):
                case 0:
                    path.unlink()
                case 1:
                    path.write_bytes(self.rng.randbytes(path.stat().st_size))
                case 2:
                    os.truncate(path, self.rng.randrange(path.stat().st_size + 1))
        return f"tampered with {len(files)} files"


@pytest.fixture
def simulate(tmp_path: Path) -> Iterator[Callable[[int, int], None]]:
    def run(seed: int, rounds: int) -> None:
        folder = tmp_path / str(seed)
        folder.mkdir()
        simulation = Simulation(folder, seed)
        done: list[str] = []
        try:
            for _ in range(rounds):
                done.append(simulation.round())  # noqa: PERF401  # kept for the message when one fails
        except BaseException:
            print(f"UNDERSTUDY_SEED={seed}, round {len(done)}; before it: {done}")
            print(simulation.service.log()[-6000:])
            raise
        finally:
            simulation.close()
        assert nothing_left_behind(folder) == []

    yield run


@pytest.mark.parametrize("seed", [int(SEED)] if SEED else [1, 2])
def test_whatever_happens_nothing_is_lost(seed: int, simulate: Callable[[int, int], None]) -> None:
    simulate(seed, 12 if SEED else 3)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_whatever_happens_for_long_nothing_is_lost(simulate: Callable[[int, int], None]) -> None:
    for seed in [int(SEED)] if SEED else range(100, 112):
        simulate(seed, 12)
