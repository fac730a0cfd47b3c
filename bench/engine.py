"""What the peers do not do at all, or nobody measures: other servers' disks, memory, a large disk full of holes."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.measure import Cost, anonymous_mib, descendants, timed
from bench.peers import Restic
from bench.service import Service, enroll, pushed
from bench.workload import Workload, make_variant

MIB = 1 << 20
SPREAD = 16
"""The large disk is so many times as large as the image whose data it has."""
CHUNK_BYTES = 64 << 20
SAMPLE_SECONDS = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """None: could not be measured here. Memory is the peak of anonymous RSS in MiB, in a full push."""

    clone: Cost | None
    reinstall: Cost | None
    restic_clone: Cost | None
    restic_reinstall: Cost | None
    agent_mib: float
    service_mib: float
    small: Cost
    """Nothing changed on the image, and on the large disk with the same data."""
    large: Cost


def measure(workload: Workload, images: Path, work: Path, report: Callable[[str], None]) -> Engine:
    """Raises BenchError."""
    work.mkdir(parents=True)
    source = work / "disk.img"
    os.link(workload.base, source)
    with Service(work / "service", "tcg") as service:
        enroll(service, work / "agent", "base", source)
        report("memory in a full push")
        with _watched(service.pid) as peak:
            pushed(service, work / "agent")
        small = pushed(service, work / "agent")
        variants = {name: make_variant(images, workload.size_bytes // MIB, name) for name in ("clone", "reinstall")}
        others: dict[str, Cost | None] = {}
        for variant, image in variants.items():
            report(f"{variant} of a protected server")
            others[variant] = None if image is None else _other(service, work, variant, image)
        report("the same servers, restic")
        theirs = _restic(workload, work, variants)
        report(f"a disk of {SPREAD * workload.size_bytes >> 30} GiB, nearly all holes")
        large = work / "large.img"
        _spread(workload.base, large)
        enroll(service, work / "large", "large", large)
        pushed(service, work / "large")
        found = Engine(
            clone=others["clone"],
            reinstall=others["reinstall"],
            agent_mib=peak["agent"],
            service_mib=peak["service"],
            small=small,
            large=pushed(service, work / "large"),
            restic_clone=theirs["clone"],
            restic_reinstall=theirs["reinstall"],
        )
    shutil.rmtree(work)
    return found


def _restic(workload: Workload, work: Path, images: Mapping[str, Path | None]) -> dict[str, Cost | None]:
    """The same servers, in the same order, into one repository."""
    costs: dict[str, Cost | None] = dict.fromkeys(images)
    if not all(shutil.which(program) for program in Restic.needs):
        return costs
    source = work / "restic.img"
    restic = Restic(work / "restic", source)
    try:
        for name, image in {"base": workload.base, **images}.items():
            if image is not None:
                source.unlink(missing_ok=True)
                os.link(image, source)
                _warm(source)
                costs[name] = restic.push()
    finally:
        restic.close()
    return costs


def _other(service: Service, work: Path, name: str, image: Path) -> Cost:
    source = work / f"{name}.img"
    os.link(image, source)
    enroll(service, work / name, name, source)
    _warm(source)
    return pushed(service, work / name)


def _warm(source: Path) -> None:
    """Into the page cache, as the base image is."""
    timed(["dd", f"if={source}", f"of={os.devnull}", "bs=4M"])


def _spread(image: Path, large: Path) -> None:
    """The image's data, with holes in between."""
    chunks = image.stat().st_size // CHUNK_BYTES
    with large.open("wb") as file:
        file.truncate(image.stat().st_size * SPREAD)
    for chunk in range(chunks):
        subprocess.run(
            ["dd", f"if={image}", f"of={large}", "bs=1M", "conv=notrunc,sparse", "status=none",
             f"count={CHUNK_BYTES // MIB}", f"skip={chunk * CHUNK_BYTES // MIB}",
             f"seek={chunk * SPREAD * CHUNK_BYTES // MIB}"],
            check=True,
        )  # fmt: skip


@contextlib.contextmanager
def _watched(service_pid: int) -> Iterator[dict[str, float]]:
    """The peaks of the service's own memory, and of this process's other children: the agent."""
    peak = {"agent": 0.0, "service": 0.0}
    ended = threading.Event()

    def look() -> None:
        own = descendants(service_pid)
        while not ended.wait(SAMPLE_SECONDS):
            peak["service"] = max(peak["service"], anonymous_mib(service_pid))
            others = descendants(os.getpid()) - own - descendants(service_pid) - {service_pid}
            peak["agent"] = max([peak["agent"], *map(anonymous_mib, others)])

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield peak
    finally:
        ended.set()
        watcher.join()
