"""A guest's file tree in a worker: its filesystems mounted below one folder, its files read and written there.

Commands that name a guest's file run with that folder as their root, so that its links lead nowhere else; device nodes,
set-user-id bits and programs of the guest's have no effect.
"""

from __future__ import annotations

import re
import shlex

from agent.protocol.errors import RecoveryError
from recovery.repair.disks import Filesystem
from recovery.repair.files import MAX_FILE_BYTES
from recovery.repair.worker import CommandFailed, Worker

ROOT = "/guest"
_OURS = "/run/.worker"  # below the guest's root: a memory filesystem of the worker's lies over the guest's /run
_ESP = "/run/.esp"
_OPTIONS = {
    "ext4": ",errors=remount-ro",
    "vfat": ",umask=0022,shortname=mixed,iocharset=utf8",
    # without it, all who have an account in the guest may write what is made there: drivers, and a service's script
    "ntfs": ",permissions",
}
_TOOLS = "sh cat head stat mkdir truncate rm chmod"
_ABSENT = 44
_PATTERN = re.compile(r"[\w/.*?\[\]!:+@~ -]+")


class WorkerFiles:
    """GuestFiles of what is mounted in a worker."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._mounted: list[str] = []
        self._made_run = False

    def mount_root(self, filesystem: Filesystem, options: str = "") -> None:
        """Raises CommandFailed; then nothing is mounted."""
        self._mount(filesystem, ROOT, options)
        try:
            self._made_run = self._worker.shell(f"[ -d {ROOT}/run ] || echo no") != b""
            # a link would lead out of the tree
            self._worker.shell(f"[ ! -L {ROOT}/run ] && mkdir -p {ROOT}/run && mount -t tmpfs ours {ROOT}/run")
            self._mounted.append(f"{ROOT}/run")
            self._worker.shell(
                f"mkdir {ROOT}{_OURS} {ROOT}{_ESP} && cp /bin/busybox {ROOT}{_OURS} && "
                f"for name in {_TOOLS}; do ln -s busybox {ROOT}{_OURS}/$name; done"
            )
        except CommandFailed:
            self.unmount()
            raise

    def mount(self, filesystem: Filesystem, path: str, options: str = "") -> None:
        """One more filesystem of the guest's, at a folder of its tree. Raises CommandFailed."""
        place = self._inside('cd "$1" && pwd -P', path).decode(errors="replace").rstrip("\n")
        self._mount(filesystem, ROOT + place, options)

    def mount_esp(self, filesystem: Filesystem) -> None:
        """Where `esp:` leads. Raises CommandFailed."""
        self._mount(filesystem, f"{ROOT}{_ESP}")

    def unmount(self) -> None:
        while self._mounted:
            place = self._mounted.pop()
            self._worker.run("umount", place)
            if place == f"{ROOT}/run" and self._made_run:
                self._worker.run("rmdir", place)

    def read(self, path: str, limit_bytes: int = MAX_FILE_BYTES) -> bytes | None:
        script = f'[ -f "$1" ] && [ "$(stat -L -c %s "$1")" -le {limit_bytes} ] || exit {_ABSENT}; cat "$1"'
        try:
            return self._inside(script, path)
        except CommandFailed as error:
            if error.status == _ABSENT:
                return None
            raise

    def read_start(self, path: str, length_bytes: int) -> bytes | None:
        """The first bytes of a plain file, however long it is; None if there is none."""
        try:
            return self._inside(f'[ -f "$1" ] || exit {_ABSENT}; head -c {length_bytes} "$1"', path)
        except CommandFailed as error:
            if error.status == _ABSENT:
                return None
            raise

    def glob(self, pattern: str) -> list[str]:
        if not _PATTERN.fullmatch(pattern):
            raise RecoveryError(f"{pattern!r} is no pattern for files")
        if pattern.startswith("esp:"):
            pattern = _ESP + pattern[4:]
        parts = re.split(r"([*?\[\]!])", pattern)
        quoted = "".join(part if part in "*?[]!" else shlex.quote(part) for part in parts)
        listed = self._inside(f'for found in {quoted}; do [ -e "$found" ] && echo "$found"; done; true')
        # names in another character set, or with line breaks, are none that a distribution gives to what is looked for
        paths = [path for path in listed.decode(errors="replace").split("\n") if path.isprintable() and path]
        return sorted(path.replace(_ESP, "esp:", 1) if path.startswith(_ESP) else path for path in paths)

    def write(self, path: str, content: bytes, *, kept_bytes: int = 0, mode: int = 0o644) -> None:
        self._worker.put(content, f"{ROOT}{_OURS}/content")
        script = (
            'folder=${1%/*}; mkdir -p "${folder:-/}" || exit 1; '
            f'if [ -e "$1" ]; then [ -f "$1" ] || exit 1; truncate -s {kept_bytes} "$1" || exit 1; '
            f'else [ {kept_bytes} -eq 0 ] && : >"$1" && chmod {mode:o} "$1" || exit 1; fi; '
            f'cat {_OURS}/content >>"$1"'
        )
        self._inside(script, path)

    def remove(self, path: str) -> None:
        self._inside('[ ! -e "$1" ] && [ ! -L "$1" ] || rm "$1"', path)

    def _inside(self, script: str, *arguments: str) -> bytes:
        """Run a script of ours with the guest's root as its own."""
        placed = [_ESP + argument[4:] if argument.startswith("esp:") else argument for argument in arguments]
        command = ["chroot", ROOT, f"{_OURS}/busybox", "env", f"PATH={_OURS}", "sh", "-c", script, "sh", *placed]
        return self._worker.run(*command)

    def _mount(self, filesystem: Filesystem, place: str, options: str = "") -> None:
        self._worker.load(filesystem.kind)
        if filesystem.kind == "vfat":
            for table in ("nls_cp437", "nls_utf8", "nls_ascii", "nls_iso8859-1"):
                self._worker.load(table)
        options = f"nodev,nosuid,noexec{_OPTIONS.get(filesystem.kind, '')}{',' + options if options else ''}"
        if filesystem.kind == "ntfs":
            self._worker.load("fuse")
            self._worker.run("/bin/ntfs-3g", "-o", options, filesystem.device, place)
        else:
            self._worker.run("mount", "-t", filesystem.kind, "-o", options, filesystem.device, place)
        self._mounted.append(place)
