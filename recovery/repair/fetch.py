"""Gets what workers are made of, for a machine that has no Linux kernel of its own on disk (a container, a micro VM).

    python -m recovery.repair.fetch DIR      then set UNDERSTUDY_WORKER=DIR

Debian packages are downloaded and unpacked, not installed; apt checks their signatures as ever. Needs no root.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from agent.protocol.errors import ToolMissing, UnderstudyError
from recovery.sites.local.durable import storage_errors

_KERNEL = "linux-image-cloud-amd64"
_OTHERS = ("busybox-static", "lvm2", "dmsetup", "ntfs-3g")


def fetch(folder: Path) -> None:
    """Fill `folder`, which appears whole or not; there already: does nothing. Raises ToolMissing, StorageError."""
    folder = folder.absolute()  # the tools run elsewhere
    if folder.exists():
        return
    with storage_errors(f"make {folder}"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".worker-", dir=folder.parent) as made:
            packages = [name for name in _needed(_KERNEL) if name.startswith("linux-image-")]
            packages += [*_OTHERS, *(name for other in _OTHERS for name in _needed(other) if name.startswith("lib"))]
            downloads = Path(made, "packages")
            downloads.mkdir()
            _run("apt-get", "download", "-qq", *dict.fromkeys(packages), folder=downloads)
            root = Path(made, "root")
            for package in sorted(downloads.glob("*.deb")):
                _run("dpkg-deb", "--extract", str(package), str(root), folder=downloads)
            root.rename(folder)


def _needed(package: str) -> list[str]:
    listed = _run("apt-cache", "depends", "--important", package, folder=Path("/"))
    return re.findall(r"^ +(?:Pre)?Depends: ([\w.+-]+)$", listed, re.MULTILINE)


def _run(*command: str, folder: Path) -> str:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ToolMissing(
            f"{command[0]} is not installed: this is no Debian machine",
            "install a Linux kernel, static busybox and LVM by its own means",
        ) from None
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ToolMissing(f"{' '.join(command[:2])} failed: {last}", "apt-get update, and again")
    return done.stdout


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m recovery.repair.fetch", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, metavar="DIR")
    try:
        fetch(parser.parse_args().folder)
    except UnderstudyError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
