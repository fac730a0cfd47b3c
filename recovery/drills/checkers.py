"""The programs that check filesystems, packed for a worker with their own libraries, whatever it is made of."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agent.protocol.errors import SiteError
from recovery.repair import cpio
from recovery.sites.local.tools import tool

_FOLDER = "check"
_LOADER = re.compile(r"ld-linux[\w.-]*|ld64[\w.-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checker:
    """`arguments` come before the device: they look, and change nothing. `replay`: how the kernel is to mount it once
    before, so that what its journal holds is where it belongs (empty: it is not mounted). `sound` and `damaged` are
    exit statuses (the latter only if it said `verdict`, too); any other says that it could not look."""

    program: str
    package: str
    arguments: tuple[str, ...]
    replay: str = ""
    sound: frozenset[int] = frozenset({0})
    damaged: frozenset[int] = frozenset({1})
    verdict: str = ""


CHECKERS: Mapping[str, Checker] = {
    # 4: errors were left as they are; 12: so many that it gave up
    "ext4": Checker(
        program="e2fsck", package="e2fsprogs", arguments=("-fn",), replay="errors=continue", damaged=frozenset({4, 12})
    ),
    "xfs": Checker(program="xfs_repair", package="xfsprogs", arguments=("-n",), replay="nouuid"),
    "btrfs": Checker(program="btrfs", package="btrfs-progs", arguments=("check", "--readonly")),
    # a system that sleeps is no damage, and ends with the same status
    "ntfs": Checker(program="ntfsfix", package="ntfs-3g", arguments=("-n",), verdict="Volume is corrupt"),
}


@dataclass(frozen=True, slots=True)
class Brought:
    """`commands` by the filesystem's kind: what to write before the device. Kinds that are missing there have no
    program on this machine."""

    entries: list[cpio.Entry] = field(default_factory=list)
    commands: dict[str, list[str]] = field(default_factory=dict)


def pack() -> Brought:
    """What this machine has of them. Raises ToolMissing, SiteError."""
    brought = Brought(entries=[cpio.folder(_FOLDER)])
    libraries: dict[str, Path] = {}
    for kind, checker in CHECKERS.items():
        program = _found(checker.program)
        if program is None:
            continue
        needed = _libraries(program)
        loader = next((name for name in needed if _LOADER.fullmatch(name)), None)
        start = []
        if needed:
            if loader is None:
                continue
            start = [f"/{_FOLDER}/{loader}", "--library-path", f"/{_FOLDER}"]
        libraries |= needed
        brought.entries.append(_entry(checker.program, program))
        brought.commands[kind] = [*start, f"/{_FOLDER}/{checker.program}", *checker.arguments]
    brought.entries.extend(_entry(name, path) for name, path in libraries.items())
    return brought


def _found(program: str) -> Path | None:
    path = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    return None if path is None else Path(path)


def _libraries(program: Path) -> dict[str, Path]:
    """By file name; empty for a static program."""
    listed = subprocess.run([tool("ldd"), program], capture_output=True, text=True, check=False).stdout
    return {Path(path).name: Path(path) for path in re.findall(r"(/\S+) \(0x", listed)}


def _entry(name: str, path: Path) -> cpio.Entry:
    try:
        return cpio.Entry(f"{_FOLDER}/{name}", stat.S_IFREG | 0o755, path.read_bytes())
    except OSError as error:
        raise SiteError(f"{path} cannot be read: {error.strerror}", "reinstall the package it belongs to") from error
