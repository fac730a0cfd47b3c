"""python -m bench.verify [SIZE_MIB]: `understudy verify` beside a plain read of the same qcow2 file.

Both read the medium, round the page cache. The limit: at least half the plain reader's MiB/s, the command's start and
the connection included. The plain reader is the best of one and two threads with 4 MiB direct reads.
"""

from __future__ import annotations

import mmap
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.measure import timed
from bench.service import PROGRAMS, Service, agent_command, enroll

MIB = 1 << 20
LIMIT = 0.5
READ_BYTES = 4 * MIB
CACHE = Path(__file__).resolve().parent.parent / ".cache"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """Medians. `plain_mib_per_second` is the disk's read speed as a plain program gets it."""

    size_mib: int
    verify_seconds: float
    verify_mib_per_second: float
    verify_cpu_seconds: float
    plain_mib_per_second: float

    @property
    def ratio(self) -> float:
        return self.verify_mib_per_second / self.plain_mib_per_second

    @property
    def holds(self) -> bool:
        return self.ratio >= LIMIT


def measure(work: Path, size_mib: int, rounds: int, report: Callable[[str], None]) -> Verification:
    """An image of noise, pushed once; then it is verified and read in turns. Raises BenchError."""
    work.mkdir(parents=True, exist_ok=True)
    image = work / "noise.img"
    rng = random.Random(1)
    with open(image, "wb") as noise:
        for _ in range(0, size_mib, 16):
            noise.write(rng.randbytes(16 * MIB))
    with Service(work / "verify", "tcg") as service:
        state = work / "verify" / "agent"
        enroll(service, state, "verified", image)
        report(f"pushing {size_mib} MiB of noise")
        timed(agent_command(state, "push", "--json"))
        (point,) = service.ask("points", "verified")
        (file,) = (service.data / "site").glob(f"*/volume-0/{point['id']}.qcow2")
        command = [PROGRAMS / "understudy", "verify", point["id"], "--data", service.data, "--json"]
        ours, plain = [], []
        for number in range(rounds):
            report(f"verifying, round {number + 1}")
            plain.append(max(_plain_mib_per_second(file, threads) for threads in (1, 2)))
            ours.append(timed(command, servers=[service.pid]))
    image.unlink()
    seconds = statistics.median(done.seconds for done in ours)
    return Verification(
        size_mib=size_mib,
        verify_seconds=seconds,
        verify_mib_per_second=size_mib / seconds,
        verify_cpu_seconds=statistics.median(done.cpu_seconds for done in ours),
        plain_mib_per_second=statistics.median(plain),
    )


def table(found: Verification) -> str:
    return "\n".join([
        "| what | size, MiB | verify, s | CPU, s | verify, MiB/s | plain read, MiB/s | ratio | limit | holds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        f"| a point read back and proven | {found.size_mib} | {found.verify_seconds:.2f} "
        f"| {found.verify_cpu_seconds:.1f} | {found.verify_mib_per_second:.0f} | {found.plain_mib_per_second:.0f} "
        f"| {found.ratio:.2f} | >= {LIMIT} | {'yes' if found.holds else '**no**'} |",
    ])  # fmt: skip


def _plain_mib_per_second(path: Path, threads: int) -> float:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    offsets = iter(range(0, os.fstat(descriptor).st_size, READ_BYTES))
    lock = threading.Lock()
    read_bytes = [0] * threads

    def read(number: int) -> None:
        buffer = mmap.mmap(-1, READ_BYTES)
        while True:
            with lock:
                offset = next(offsets, None)
            if offset is None:
                return
            read_bytes[number] += os.preadv(descriptor, [buffer], offset)

    began = time.monotonic()
    workers = [threading.Thread(target=read, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    seconds = time.monotonic() - began
    os.close(descriptor)
    return sum(read_bytes) / MIB / seconds


def main() -> int:
    size_mib = int(sys.argv[1]) if len(sys.argv) > 1 else 4096
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=CACHE) as folder:
        found = measure(Path(folder), size_mib, 3, lambda line: print(f"bench: {line}", file=sys.stderr, flush=True))
    print(table(found))
    return 0 if found.holds else 1


if __name__ == "__main__":
    sys.exit(main())
