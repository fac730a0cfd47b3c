"""python -m bench [--quick]: measure, print Markdown tables, write bench/results.json."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench import boot, engine, peers, planning, replication, runs, tables, verify, workload
from bench.borg import Borg
from bench.measure import BenchError, undo_when_told_to_end

HERE = Path(__file__).resolve().parent
CACHE = HERE.parent / ".cache"
MIB = 1 << 20


def main() -> int:
    undo_when_told_to_end()
    options = _options()
    size_mib, rounds = (512, 1) if options.quick else (4096, options.rounds)
    if not options.quick:
        peers.install()
    CACHE.mkdir(exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix="bench-", dir=CACHE) as folder:
            document = _measure(Path(folder), options, size_mib, rounds)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    options.out.write_text(json.dumps(document, indent=1) + "\n")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small image and one round: does it work?")
    parser.add_argument("--only", choices=("replication", "boot", "runs"), help="one of the three parts")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="medians of so many (default: 3)")
    parser.add_argument("--images", type=Path, metavar="DIR", help="keep the disk images here, for the next run")
    parser.add_argument("--out", type=Path, default=HERE / "results.json", metavar="FILE")
    return parser.parse_args()


def _measure(work: Path, options: argparse.Namespace, size_mib: int, rounds: int) -> dict[str, Any]:
    machine = _machine()
    print(f"Machine: {machine['processors']} x {machine['model']}, {machine['memory_mib']} MiB, {machine['system']}; "
          f"load before {machine['load']}; page cache warm; medians of {rounds}")  # fmt: skip
    document: dict[str, Any] = {"machine": machine, "rounds": rounds, "peers": peers.versions()}
    if options.only in (None, "replication"):
        _check_space(work, size_mib)
        images = options.images or work / "images"
        made = workload.load(images, size_mib)
        if made is None:
            _report(f"making two images of {size_mib} MiB")
            made = workload.make(images, size_mib)
            workload.save(made, images)
        document["workload"] = {
            "origin": made.origin,
            "size_bytes": made.size_bytes,
            "data_bytes": made.data_bytes,
            "changed_bytes": made.changed_bytes,
            "packed_bytes": made.packed_bytes,
        }
        rows = tables.replication_rows(replication.measure(made, work, rounds, _report), made.packed_bytes)
        rows += tables.engine_rows(engine.measure(made, images, work / "engine", _report))
        document["replication"] = [tables.row_document(row) for row in rows]
        print(f"\n## Replication\nImage: {size_mib} MiB, {made.data_bytes // MIB} MiB not zero, "
              f"a day's change {made.changed_bytes / MIB:.1f} MiB in 4 KiB pages ({made.origin}).\n"
              "Ours: understudy-agent and understudy serve over TLS 1.3, synced to disk. "
              f"Peers, plain TCP, nothing synced: {_peers(document['peers'])}.\n"
              f"`{Borg.flags}`; `{peers.Restic.flags}`; `{peers.Rsync.flags}`.\n"
              "A target is a figure of another machine and another image; ratios to peers travel.\n")  # fmt: skip
        print(tables.table(rows), flush=True)
        print("\n## Verifying\n")
        verified = verify.measure(work / "verify", min(size_mib, 2048), rounds, _report)
        document["verify"] = dataclasses.asdict(verified)
        print(verify.table(verified), flush=True)
    if options.only in (None, "boot"):
        print("\n## Planning\n", flush=True)
        planning.main()
        print("\n## Panic beside booting by hand\n")
        try:
            boots = boot.measure(work / "boot", rounds, _report)
        except BenchError as error:  # what was measured before is not thrown away for it
            document["boot"] = {"missing": str(error)}
            print(f"Not measured: {error}", flush=True)
        else:
            document["boot"] = tables.boot_document(boots)
            print(tables.boot_table(boots), flush=True)
    if options.only in (None, "runs"):
        print("\n## Runs\nSmall servers that answer HTTP, under software emulation.\n", flush=True)
        try:
            found = runs.measure(work / "runs", rounds, _report)
        except BenchError as error:
            document["runs"] = {"missing": str(error)}
            print(f"Not measured: {error}", flush=True)
        else:
            document["runs"] = [tables.row_document(row) for row in found]
            print(tables.table(found), flush=True)
    return document


def _machine() -> dict[str, Any]:
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    return {
        "processors": os.cpu_count(),
        "model": model,
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // MIB,
        "system": f"Linux {platform.release()}, Python {platform.python_version()}",
        "load": f"{os.getloadavg()[0]:.1f}",
    }


def _check_space(work: Path, size_mib: int) -> None:
    """Two images, three repositories, something that is pulled. Raises BenchError."""
    free_mib = shutil.disk_usage(work).free // MIB
    if free_mib < 6 * size_mib:
        raise BenchError(f"{work.parent} has {free_mib} MiB free, and this needs {6 * size_mib} MiB")


def _peers(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items()) or "none installed"


def _report(line: str) -> None:
    print(f"bench: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
