"""The disk images that are replicated: a server's disk, and the same disk a day later.

They come from ../shared/workload (make_disk.py, mutate.py) where that and numpy are there; otherwise they are made
here, much the same: an ext4 filesystem with files of this machine, media, a database and logs, the rest free.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import zstandard

from bench.measure import BenchError, environment

SHARED = Path(__file__).resolve().parents[2] / "shared/workload"
PAGE_BYTES = 4096
MIB = 1 << 20

_FILES = ("/usr/lib", "/usr/bin", "/usr/share")
_FILES_SHARE, _MEDIA_SHARE, _DATABASE_SHARE, _LOG_SHARE = 0.385, 0.075, 0.10, 0.035
_DAY_PAGES_SHARE, _DAY_LOG_SHARE, _DAY_FILES_SHARE = 0.01, 0.0025, 0.005
_PAGE_MARK = b"bench database page "


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Two raw images. `changed_bytes`: in 4 KiB pages that differ; `packed_bytes`: these pages, packed together with
    zstd at level 3. `origin` says how they were made."""

    base: Path
    day: Path
    size_bytes: int
    data_bytes: int
    changed_bytes: int
    packed_bytes: int
    origin: str


def make(folder: Path, size_mib: int) -> Workload:
    """Raises BenchError."""
    base, day = folder / "base.img", folder / "day1.img"
    folder.mkdir(parents=True, exist_ok=True)
    python = _python_with_numpy() if (SHARED / "make_disk.py").exists() else None
    if python is not None:
        origin = f"../shared/workload make_disk.py --size-gib {size_mib / 1024:g} --seed 1, mutate.py --seed 7"
        _run([python, SHARED / "make_disk.py", "--size-gib", f"{size_mib / 1024:g}", "--seed", "1", "--out", base])
        _run([python, SHARED / "mutate.py", "--in", base, "--out", day, "--seed", "7"])
    else:
        origin = "bench/workload.py"
        _make_base(base, size_mib * MIB, folder / "work")
        _make_day(base, day, size_mib * MIB, folder / "work")
    data_bytes, changed_bytes, packed_bytes = _compare(base, day)
    return Workload(
        base=base,
        day=day,
        size_bytes=size_mib * MIB,
        data_bytes=data_bytes,
        changed_bytes=changed_bytes,
        packed_bytes=packed_bytes,
        origin=origin,
    )


def make_variant(folder: Path, size_mib: int, variant: str) -> Path | None:
    """Another server's disk: `clone` of the base image with own data, `reinstall`: the same files laid out anew.

    None where ../shared/workload is absent. Raises BenchError."""
    image = folder / f"{variant}.img"
    python = _python_with_numpy() if (SHARED / "make_disk.py").exists() else None
    if not image.exists() and python is not None:
        size = f"{size_mib / 1024:g}"
        _run([python, SHARED / "make_disk.py", "--size-gib", size, "--seed", "1", "--variant", variant, "--out", image])
    return image if image.exists() else None


def _python_with_numpy() -> str | None:
    """A Python that has numpy, and is safe for make_disk.py: that copies the folder which the interpreter's
    installation lies in, and for a Python in /usr that is /, /proc and all, until the disk is full."""
    question = "import os, sys, numpy; sys.exit(os.path.dirname(sys.base_prefix) == '/')"
    for python in (sys.executable, "python3"):
        found = shutil.which(python)
        if found and subprocess.run([found, "-c", question], capture_output=True, check=False).returncode == 0:
            return found
    return None


def _make_base(image: Path, size_bytes: int, work: Path) -> None:
    rng = random.Random(1)  # the same bytes each time
    tree = work / "tree"
    for folder in ("srv/media", "srv/db", "var/log"):
        (tree / folder).mkdir(parents=True)
    _copy_files(tree, int(size_bytes * _FILES_SHARE))
    for number, count in enumerate(_parts(int(size_bytes * _MEDIA_SHARE), 8 * MIB)):
        (tree / f"srv/media/{number}.bin").write_bytes(rng.randbytes(count))
    with (tree / "srv/db/data").open("wb") as file:
        for number in range(int(size_bytes * _DATABASE_SHARE) // PAGE_BYTES):
            file.write(_page(rng, number))
    for number, count in enumerate(_parts(int(size_bytes * _LOG_SHARE), 16 * MIB)):
        (tree / f"var/log/app.log.{number}").write_bytes(_log(rng, count))
    with image.open("wb") as file:
        file.truncate(size_bytes)
    _run(["mke2fs", "-q", "-F", "-t", "ext4", "-b", str(PAGE_BYTES), "-d", tree, image])
    shutil.rmtree(work)


def _make_day(base: Path, day: Path, size_bytes: int, work: Path) -> None:
    """Database pages written anew, a day of log, new files as a package upgrade brings them."""
    rng = random.Random(7)
    _run(["cp", "--sparse=always", base, day])
    with day.open("r+b") as file:
        pages = [offset for offset, page in _pages(day) if page.startswith(_PAGE_MARK)]
        for offset in rng.sample(pages, min(len(pages), int(size_bytes * _DAY_PAGES_SHARE) // PAGE_BYTES)):
            file.seek(offset)
            file.write(_page(rng, rng.randrange(1 << 30)))
    work.mkdir()
    (work / "log").write_bytes(_log(rng, int(size_bytes * _DAY_LOG_SHARE)))
    commands = [f"write {work}/log /var/log/app.log.day"]
    for number, count in enumerate(_parts(int(size_bytes * _DAY_FILES_SHARE), 50 << 10)):
        (work / f"new{number}").write_bytes(rng.randbytes(count // 2) + _log(rng, count - count // 2))
        commands.append(f"write {work}/new{number} /srv/upgraded-{number}")
    (work / "commands").write_text("\n".join(commands) + "\n")
    _run(["debugfs", "-w", "-f", work / "commands", day])
    shutil.rmtree(work)


def _copy_files(tree: Path, budget_bytes: int) -> None:
    """Files of this machine, until the budget is used up."""
    left = budget_bytes
    for root in _FILES:
        for path in sorted(Path(root).rglob("*")):
            with_blocks = 0
            try:
                found = path.lstat()
                if stat.S_ISREG(found.st_mode) and found.st_size < 64 * MIB:
                    with_blocks = -(-found.st_size // PAGE_BYTES) * PAGE_BYTES
                    if 0 < with_blocks <= left:
                        copy = tree / path.relative_to("/")
                        copy.parent.mkdir(parents=True, exist_ok=True)
                        shutil.copyfile(path, copy)
                        left -= with_blocks
            except OSError:
                continue  # not ours to read, or gone meanwhile
            if left < MIB:
                return


def _parts(total_bytes: int, most_bytes: int) -> Iterator[int]:
    while total_bytes > 0:
        yield min(total_bytes, most_bytes)
        total_bytes -= most_bytes


def _page(rng: random.Random, number: int) -> bytes:
    """A page of a database: rows with ids and hashes in them, and names that repeat."""
    rows = b"".join(b"%012d %s %s\n" % (number * 32 + row, rng.randbytes(24), rng.choice(_NAMES)) for row in range(48))
    return (_PAGE_MARK + rows).ljust(PAGE_BYTES, b"\0")[:PAGE_BYTES]


def _log(rng: random.Random, count: int) -> bytes:
    lines = []
    length = 0
    while length < count:
        line = b"2026-11-%02d %s [worker.%d] request=%08x path=/api/v1/orders/%d status=200 took=%dms\n" % (
            rng.randrange(1, 31), rng.choice((b"INFO", b"WARN")), rng.randrange(9), rng.getrandbits(32),
            rng.randrange(10**6), rng.randrange(900),
        )  # fmt: skip
        lines.append(line)
        length += len(line)
    return b"".join(lines)[:count]


_NAMES = [b"customer-%05d, pending shipment" % number for number in range(400)]


# --- both ---


def _pages(image: Path) -> Iterator[tuple[int, bytes]]:
    """(offset, content) of every page that is not zero."""
    with image.open("rb") as file:
        for offset in range(0, image.stat().st_size, MIB):
            data = file.read(MIB)
            if data.count(0) != len(data):
                for at in range(0, len(data), PAGE_BYTES):
                    page = data[at : at + PAGE_BYTES]
                    if page.count(0) != len(page):
                        yield offset + at, page


def _compare(base: Path, day: Path) -> tuple[int, int, int]:
    """Bytes of the base image that are not zero, and bytes that differ a day later, both in pages; the latter also
    packed. Warms the cache."""
    data_bytes = sum(len(page) for _, page in _pages(base))
    changed_bytes = packed_bytes = 0
    packing = zstandard.ZstdCompressor(level=3).compressobj()
    with base.open("rb") as one, day.open("rb") as other:
        while before := one.read(MIB):
            after = other.read(MIB)
            if before != after:
                for at in range(0, len(before), PAGE_BYTES):
                    if before[at : at + PAGE_BYTES] != (page := after[at : at + PAGE_BYTES]):
                        changed_bytes += PAGE_BYTES
                        packed_bytes += len(packing.compress(page))
    return data_bytes, changed_bytes, packed_bytes + len(packing.flush())


def _run(command: list[str | Path]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, env=environment({}), check=False)
    if done.returncode != 0:
        raise BenchError(f"{command[0]} failed (exit {done.returncode}): {done.stderr.strip()[-1000:]}")


def save(workload: Workload, folder: Path) -> None:
    """Note beside the images what they are, so that another run can use them again."""
    fields = {name: value for name, value in dataclasses.asdict(workload).items() if name not in ("base", "day")}
    (folder / "workload.json").write_text(json.dumps(fields))


def load(folder: Path, size_mib: int) -> Workload | None:
    """What `save` noted, if it is of that size; None also for what an older bench noted."""
    try:
        fields = json.loads((folder / "workload.json").read_text())
    except FileNotFoundError:
        return None
    if fields["size_bytes"] != size_mib * MIB or "packed_bytes" not in fields:
        return None
    for name in ("base.img", "day1.img"):
        _run(["dd", f"if={folder / name}", f"of={os.devnull}", "bs=4M"])  # into the page cache
    return Workload(base=folder / "base.img", day=folder / "day1.img", **fields)
