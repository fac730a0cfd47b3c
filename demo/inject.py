"""Puts a file into a disk image made by demo.image, without mounting it."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from demo.building import BuildError
from demo.image import PARTITION_OFFSET_BYTES


def inject(image: Path, path: str, content: bytes) -> None:
    """Write `content` as the file `path` (absolute; its folder is made if it is missing), for root alone.

    Raises BuildError."""
    folders = [str(folder) for folder in reversed(Path(path).parents) if str(folder) != "/"]
    with tempfile.NamedTemporaryFile() as source:
        source.write(content)
        source.flush()
        commands = [f"mkdir {folder}" for folder in folders if not _exists(image, folder)]
        if _exists(image, path):
            commands.append(f"rm {path}")
        commands += [f"write {source.name} {path}", *(f"set_inode_field {path} {field} 0" for field in ("uid", "gid"))]
        commands.append(f"set_inode_field {path} mode 0100600")
        _debugfs(image, "-w", "-f", "-", stdin="\n".join(commands) + "\n")
    if read_back(image, path) != content:
        raise BuildError(f"{path} could not be written into {image}")


def read_back(image: Path, path: str) -> bytes:
    """The file's content; empty if there is none."""
    return _debugfs(image, "-R", f"cat {path}")


def _exists(image: Path, path: str) -> bool:
    return _debugfs(image, "-R", f"stat {path}") != b""


def _debugfs(image: Path, *arguments: str, stdin: str = "") -> bytes:
    """What it prints. It tells of failures on stderr only, with exit status 0: callers look at what came of it."""
    device = f"{image}?offset={PARTITION_OFFSET_BYTES}"
    environment = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
    try:
        return subprocess.run(
            ["debugfs", *arguments, device], input=stdin.encode(), capture_output=True, env=environment
        ).stdout
    except FileNotFoundError:
        raise BuildError("debugfs is not installed; run: make setup") from None
