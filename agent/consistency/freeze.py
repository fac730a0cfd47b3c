"""Freezing the filesystems of a source for a moment, by way of a child process that thaws whatever happens to us.

    freeze = Freeze(mounted_filesystems(path))
    freeze.prepare()            # starts the child, writes dirty data back: not frozen yet, may take its time
    freeze.freeze()
    try: ...                    # touch no filesystem: no logging, no imports, nothing written anywhere
    finally: result = freeze.thaw()
    if not result.held: ...     # somebody thawed early: what was read is not one instant
    freeze.close()

If this process dies, the child thaws; if the child dies, `thaw()` and `close()` here do; if both die at once (the whole
service is killed), systemd's ExecStopPost runs `thaw_all`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from agent.consistency import linux
from agent.protocol.errors import FreezeError
from agent.volumes.topology import MountedFilesystem

_START_SECONDS = 30.0
_GRACE_SECONDS = 15.0
"""How long an answer that is due may take on a busy machine, before this process thaws."""


@dataclass(frozen=True, slots=True)
class ThawResult:
    """`held`: nothing was thawed between freeze() and thaw(). `seconds` from the first FIFREEZE to the last FITHAW."""

    held: bool
    seconds: float


class Freeze:
    """A freeze of `filesystems`, in the order given: the order of `mounted_filesystems`, which ends with root.

    After `limit_seconds` from the first FIFREEZE all is thawed, whoever is still reading. After freeze(), `unfrozen`
    are the writable filesystems that went on: of a kind that cannot be frozen (vfat), or hidden under another mount.
    """

    def __init__(self, filesystems: Sequence[MountedFilesystem], limit_seconds: float = 30.0) -> None:
        self.unfrozen: list[MountedFilesystem] = []
        self._filesystems = list(filesystems)
        self._limit_seconds = limit_seconds
        self._hidden: list[MountedFilesystem] = []
        self._skipped: set[str] = set()
        self._descriptors: dict[str, int] = {}
        self._child: subprocess.Popen[bytes] | None = None
        self._answers = b""
        self._frozen_since: float | None = None

    def prepare(self) -> None:
        """Start the child (once) and write back what is dirty, so that freeze() is short. May be called repeatedly.

        Raises FreezeError.
        """
        if self._child is None:
            self._open()
            self._child = self._start()
        for mountpoint, descriptor in self._descriptors.items():
            try:
                linux.sync_filesystem(descriptor)
            except OSError as error:
                raise FreezeError(f"{mountpoint} cannot be written back: {error.strerror}") from error

    def freeze(self) -> None:
        """Freeze all, or none: raises FreezeError and leaves nothing frozen."""
        if self._child is None:
            self.prepare()
        self._frozen_since = time.monotonic()
        answer = self._ask("freeze", self._limit_seconds + _GRACE_SECONDS)
        if answer is None:
            self._thaw_ourselves()
        if answer is None or not answer["frozen"]:  # a child that answers left nothing frozen
            self._frozen_since = None
            self.close()
            raise _freeze_error(answer)
        self._skipped = set(answer["skipped"])
        self.unfrozen = [
            filesystem
            for filesystem in self._filesystems
            if (filesystem in self._hidden or filesystem.mountpoint in self._skipped) and not filesystem.read_only
        ]

    def thaw(self) -> ThawResult:
        """Thaw all. Never raises: with the child dead, this process thaws."""
        if self._frozen_since is None:
            return ThawResult(held=False, seconds=0.0)
        answer = self._ask("thaw", _GRACE_SECONDS)
        seconds, self._frozen_since = time.monotonic() - self._frozen_since, None
        if answer is None:
            return ThawResult(self._thaw_ourselves(), seconds)
        # An answer without these is a late one, to a freeze() that was interrupted: nothing to rely on.
        return ThawResult(answer.get("held", False), answer.get("seconds", seconds))

    def close(self) -> None:
        """Thaw if need be, and end the child. More than once is harmless."""
        if self._frozen_since is not None:
            self.thaw()
        child, self._child = self._child, None
        if child is not None:
            with contextlib.suppress(OSError):
                _pipe(child.stdin).close()
            with contextlib.suppress(subprocess.TimeoutExpired):  # it waits in FIFREEZE, and thaws when that returns
                child.wait(_GRACE_SECONDS)
            _pipe(child.stdout).close()
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()
        self._hidden.clear()
        self._answers = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> None:
        """Open every mountpoint, and make sure that it leads to the filesystem that is meant."""
        for filesystem in self._filesystems:
            try:
                descriptor = os.open(filesystem.mountpoint, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            except OSError as error:
                raise FreezeError(f"{filesystem.mountpoint} cannot be opened: {error.strerror}") from error
            if filesystem.mount_id in (-1, _mount_id(descriptor)):
                self._descriptors[filesystem.mountpoint] = descriptor
            else:
                os.close(descriptor)
                self._hidden.append(filesystem)

    def _start(self) -> subprocess.Popen[bytes]:
        package_root = str(Path(__file__).parents[2])
        command = [sys.executable, "-B", "-m", "agent.consistency.freezer", str(self._limit_seconds)]
        try:
            child = subprocess.Popen(
                [*command, *self._descriptors],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                cwd="/",
                env={**os.environ, "PYTHONPATH": package_root, "PYTHONDONTWRITEBYTECODE": "1"},
                start_new_session=True,  # what ends our terminal or process group must not end it
            )
        except OSError as error:
            raise FreezeError(f"the process that freezes cannot be started: {error.strerror}") from error
        self._child = child
        answer = self._receive(_START_SECONDS)
        if answer is None or "ready" not in answer:
            self.close()
            raise _freeze_error(answer)
        return child

    def _ask(self, command: str, patience_seconds: float) -> dict[str, Any] | None:
        """The child's answer; None when it is dead or does not answer in time."""
        if self._child is None:
            return None
        try:
            _pipe(self._child.stdin).write(command.encode() + b"\n")
        except BrokenPipeError:
            return None
        return self._receive(patience_seconds)

    def _receive(self, patience_seconds: float) -> dict[str, Any] | None:
        assert self._child is not None
        stdout = _pipe(self._child.stdout)
        poll = select.poll()
        poll.register(stdout, select.POLLIN)
        until = time.monotonic() + patience_seconds
        while b"\n" not in self._answers:
            readable = poll.poll(max(0.0, until - time.monotonic()) * 1000)
            received = os.read(stdout.fileno(), 4096) if readable else b""
            if not received:
                return None
            self._answers += received
        line, _, self._answers = self._answers.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _thaw_ourselves(self) -> bool:
        """Thaw by our own descriptors; whether all of them were still frozen."""
        held = True
        for mountpoint, descriptor in reversed(self._descriptors.items()):
            if mountpoint not in self._skipped and not _thawed(descriptor):
                held = False
        return held


def thaw_all(paths: Iterable[str]) -> list[str]:
    """Thaw what a dead agent may have left frozen at these mountpoints; returns those that were. Never raises."""
    thawed = []
    for path in paths:
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                if _thawed(descriptor):
                    thawed.append(path)
            finally:
                os.close(descriptor)
    return thawed


def lock_memory() -> None:
    """Keep this process in memory, to be called before freeze(): while frozen it must not wait for a disk.

    Raises FreezeError.
    """
    try:
        linux.lock_memory()
    except OSError as error:
        raise FreezeError(f"memory cannot be locked: {error.strerror}", _way_out(error.errno)) from error


def unlock_memory() -> None:
    """Undo lock_memory, after thaw()."""
    with contextlib.suppress(OSError):
        linux.unlock_memory()


def _thawed(descriptor: int) -> bool:
    try:
        linux.thaw_filesystem(descriptor)
    except OSError:
        return False
    return True


def _mount_id(descriptor: int) -> int:
    for line in Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "mnt_id":
            return int(value)
    return -1


def _pipe(stream: Any) -> Any:
    assert stream is not None
    return stream


def _freeze_error(answer: dict[str, Any] | None) -> FreezeError:
    if answer is None:
        return FreezeError("the process that freezes ended or does not answer; nothing is frozen")
    where, number = answer.get("mountpoint"), answer.get("errno")
    if number == errno.EBUSY:
        return FreezeError(
            f"{where} is frozen already, by somebody else",
            "find out who (a backup or snapshot tool?); if nobody is: understudy-agent thaw, or fsfreeze --unfreeze",
        )
    message = f"{where} cannot be frozen: {answer['error']}" if where else f"freezing failed: {answer['error']}"
    return FreezeError(message, _way_out(number))


def _way_out(number: int | None) -> str | None:
    return "run as root" if number in (errno.EPERM, errno.EACCES, errno.ENOMEM) else None
