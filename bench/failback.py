"""The way home of one server: what comes over the wire beside what differs, and what each stage takes.

Real service, real instance, real agents. The machine at home is a loop device. The instance's own agent is a process
of this machine that takes it for the instance, and sees there a disk to which the same was written as to the guest's.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench import guest
from bench.estate import Estate, server
from bench.measure import BenchError, environment, timed
from bench.service import PROGRAMS, agent_command
from bench.tables import Row

NAME = "web01"
LIMIT_RATIO = 1.1
MIB = 1 << 20
DISK_BYTES = 256 * MIB
WRITTEN_AWAY_BYTES, WRITTEN_LAST_BYTES, WRITTEN_AT_HOME_BYTES = 32 * MIB, 4 * MIB, 8 * MIB
"""By the instance before and after its last point but one; by the machine at home before it died, which nobody has."""
PAGES, PAGE_BYTES = 256, 4096
"""Scattered over the disk at home, for a pull of their own."""
PATIENCE_SECONDS = 300.0
POLL_SECONDS = 0.05


def measure(folder: Path, cache: Path, report: Callable[[str], None]) -> list[Row]:
    """Raises BenchError."""
    if os.geteuid() != 0:
        return [Row(what="failback", measure="MiB", peer="what differs", missing="needs root: a loop device, mounts")]
    folder.mkdir()
    image = folder / "guest.img"
    guest.build(image, DISK_BYTES, cache)
    with Estate(folder, image, [NAME]) as estate:
        image.unlink()
        return _WayHome(estate, report).measure()


class _WayHome:
    def __init__(self, estate: Estate, report: Callable[[str], None]) -> None:
        self._estate = estate
        self._report = report
        self._rng = random.Random(1)
        self._disk = estate.image(NAME)
        self._away = estate.folder / "away.img"
        self._home = estate.folder / "home.img"

    def measure(self) -> list[Row]:
        estate = self._estate
        estate.apply({"plan": "one", "groups": [{"servers": [server(NAME)]}]})
        _, failover = estate.run("panic", "one")
        self._address = failover["instances"][0]["addresses"][str(guest.PORT)]
        shutil.copyfile(self._disk, self._away)
        shutil.copyfile(self._disk, self._home)
        shutil.copytree(estate.agent(NAME), estate.agent("instance"))  # it is on the disk
        self._write(self._home, DISK_BYTES // 2, WRITTEN_AT_HOME_BYTES)
        self._write(self._away, guest.SYSTEM_BYTES, WRITTEN_AWAY_BYTES, in_guest=True)
        token = estate.service.ask("enroll-token", "--name", NAME)["token"]
        timed(agent_command(estate.agent("repair"), "enroll", estate.service.url, token, "--json"))
        (owner,) = (found["owner"] for found in estate.service.ask("servers"))
        prefix = _as_machine(estate.folder, owner, self._away, self._disk)
        contents = [self._home.read_bytes()]
        with _background([*prefix, *agent_command(estate.agent("instance"), "run")]), _loop_device(self._home) as home:
            going = self._begin(failover["id"])
            for number in range(2):
                point = self._pull_wanted()
                if number == 0:
                    self._write(self._away, DISK_BYTES - WRITTEN_LAST_BYTES, WRITTEN_LAST_BYTES, in_guest=True)
                self._pull(point, home)
                contents.append(self._home.read_bytes())
        self._await(lambda steps: any(step["action"] == "await_home" and step["state"] == "running" for step in steps))
        os.replace(self._home, self._disk)  # the machine at home starts with the disk just written
        timed(agent_command(estate.agent(NAME), "push", "--json"))
        out, _ = going.communicate(timeout=PATIENCE_SECONDS)
        run = json.loads(out)
        if run["state"] != "succeeded":
            raise BenchError(f"the failback is {run['state']}")
        copied = [step["result"]["received_bytes"] for step in run["steps"] if step["name"].startswith("copy")]
        wanted = [_differing_bytes(*pair) for pair in itertools.pairwise(contents)]
        rows = [self._bytes_row("failback, both copies: received", sum(copied), sum(wanted), LIMIT_RATIO)]
        names = ("failback, the copy while it runs: received", "failback, the copy of the last changes: received")
        for name, ours, theirs in zip(names, copied, wanted, strict=True):
            rows.append(self._bytes_row(name, ours, theirs, LIMIT_RATIO))
        return [*rows, self._pages_row(point), *_stage_rows(run)]

    def _write(self, image: Path, offset: int, size_bytes: int, *, in_guest: bool = False) -> None:
        """What cannot be compressed, into an image; and `in_guest`: by the instance, onto its own disk."""
        content = self._rng.randbytes(size_bytes)
        with image.open("r+b") as file:
            file.seek(offset)
            file.write(content)
        if in_guest:
            guest.send(self._address, offset, content)

    def _begin(self, failover_id: str) -> subprocess.Popen[str]:
        command: list[str | Path] = [PROGRAMS / "understudy", "failback", failover_id, "--yes", "--json"]
        command += ["--data", self._estate.service.data]
        going = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        self._estate.ends_with(going)
        return going

    def _pull_wanted(self) -> str:
        """The point that the failback waits for somebody to pull."""
        (said,) = self._await(
            lambda steps: [
                step["waits_for"]
                for step in steps
                if step["state"] == "running" and "understudy-agent pull" in (step["waits_for"] or "")
            ]
        )
        return str(said.split("pull ")[1].split()[0])

    def _pull(self, point: str, onto: str | Path) -> int:
        """Bytes received."""
        state = self._estate.agent("repair")
        done = timed(agent_command(state, "pull", point, "--volume", "0", "--onto", onto, "--yes", "--json"))
        received_bytes = json.loads(done.out)["received_bytes"]
        self._report(f"pulled {point}: {received_bytes / MIB:.1f} MiB in {done.seconds:.1f} s")
        return int(received_bytes)

    def _pages_row(self, point: str) -> Row:
        """All that travels both ways, where a page differs in some of the blocks that hold something."""
        content = self._disk.read_bytes()
        blocks = range(guest.SYSTEM_BYTES // guest.BLOCK_BYTES, DISK_BYTES // guest.BLOCK_BYTES)
        held = [block for block in blocks if any(content[block * guest.BLOCK_BYTES :][: guest.BLOCK_BYTES])]
        with self._disk.open("r+b") as file:
            for block in self._rng.sample(held, PAGES):
                file.seek(block * guest.BLOCK_BYTES)
                file.write(self._rng.randbytes(PAGE_BYTES))
        return self._bytes_row(
            f"a pull where {PAGES} scattered pages differ: sent and received", self._pull(point, self._disk),
            PAGES * PAGE_BYTES, LIMIT_RATIO,
        )  # fmt: skip

    def _bytes_row(self, name: str, ours: int, theirs: int, limit: float) -> Row:
        peer = "pages that differ"
        return Row(what=name, measure="MiB", peer=peer, ours=ours / MIB, theirs=theirs / MIB, limit=limit)

    def _await(self, look: Callable[[list[dict[str, Any]]], Any]) -> Any:
        """What `look` finds in the newest run's steps, as soon as it is something; from the service's database, for
        asking it costs processor time of this machine."""
        query = (
            "SELECT action, state, waits_for FROM steps WHERE run_id = (SELECT id FROM runs WHERE kind = 'failback')"
        )
        deadline = time.monotonic() + PATIENCE_SECONDS
        path = self._estate.service.data / "understudy.sqlite"
        with contextlib.closing(sqlite3.connect(path, timeout=PATIENCE_SECONDS)) as database:
            database.row_factory = sqlite3.Row
            while not (found := look([dict(row) for row in database.execute(query)])):
                if time.monotonic() > deadline:
                    raise BenchError("the failback does not go on")
                time.sleep(POLL_SECONDS)
        return found


def _stage_rows(run: dict[str, Any]) -> list[Row]:
    rows = []
    for stage in dict.fromkeys(step["stage"] for step in run["steps"]):
        seconds = sum(step["seconds"] for step in run["steps"] if step["stage"] == stage)
        rows.append(Row(what=f"failback, stage: {stage}", measure="s", peer="", ours=seconds))
    what = "failback, outage (RTO): from the shutdown to the first word from home"
    rows.append(Row(what=what, measure="s", peer="without the machine's own start", ours=run["rto_seconds"]))
    return rows


def _differing_bytes(before: bytes, after: bytes) -> int:
    """In pages of 4 KiB."""
    pages = range(0, len(after), PAGE_BYTES)
    return sum(PAGE_BYTES for at in pages if before[at : at + PAGE_BYTES] != after[at : at + PAGE_BYTES])


def _as_machine(folder: Path, machine_id: str, disk: Path, at: Path) -> list[str | Path]:
    """A prefix for an agent that takes this for the machine `machine_id`, whose disk is found `at` the usual place."""
    identity = folder / f"machine-{machine_id}"
    identity.write_text(machine_id + "\n")
    firmware = "/media/dmi/id"  # firmware that this machine may not have; the rest of the folder stays
    mounts = (
        f"mount -t tmpfs none /media; cp -a /sys/class/block /sys/class/net /media/; mkdir -p {firmware}; "
        f"cp {identity} {firmware}/product_uuid; mount --bind /media /sys/class; mount --bind {disk} {at}"
    )
    return ["unshare", "--mount", "sh", "-ec", f'{mounts}; exec "$0" "$@"']


@contextlib.contextmanager
def _background(command: list[str | Path]) -> Iterator[None]:
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, env=environment({})) as process:
        try:
            yield
        finally:
            process.terminate()


@contextlib.contextmanager
def _loop_device(backing: Path) -> Iterator[str]:
    done = subprocess.run(["losetup", "--find", "--show", backing], check=True, capture_output=True, text=True)
    device = done.stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
