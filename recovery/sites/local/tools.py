"""Running QEMU's command-line tools, and finding those that a killed service left behind."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from agent.protocol.errors import Conflict, SiteError, StorageError, StorageFull, ToolMissing

QEMU_IMG = "qemu-img"
STORAGE_DAEMON = "qemu-storage-daemon"


def tool(name: str) -> str:
    """Its path. Raises ToolMissing."""
    path = shutil.which(name)
    if path is None:
        raise ToolMissing(f"{name} is not installed on this machine")
    return path


def qemu_img(*arguments: str, doing: str) -> str:
    """Run qemu-img; returns stdout. `doing` says what for in errors: "merge point x"."""
    done = subprocess.run([tool(QEMU_IMG), *arguments], capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0:
        raise failure(doing, done.stderr)
    return done.stdout


def failure(doing: str, stderr: str) -> SiteError | StorageError | Conflict:
    """What a tool of QEMU wrote before it failed, as one of our errors."""
    reason = last_line(stderr) or "no reason given"
    message = f"cannot {doing}: {reason}"
    if "No space left on device" in stderr or "Disk quota exceeded" in stderr:
        return StorageFull(message)
    if "Failed to get" in stderr and "lock" in stderr:
        return Conflict(f"cannot {doing}: another process uses the volume", "end the instance or wait until it is done")
    return StorageError(message)


def last_line(text: str) -> str:
    """The last line with something on it, without the program's name in front."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("qemu-img: ").removeprefix("qemu-storage-daemon: ") if lines else ""


def command_line(pid: int) -> list[str]:
    """Empty if there is no such process, or only a zombie."""
    try:
        return [os.fsdecode(part) for part in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]]
    except OSError:
        return []


def processes() -> Iterator[tuple[int, list[str]]]:
    """(pid, command line) of all that this machine runs."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (arguments := command_line(int(entry.name))):
            yield int(entry.name), arguments


def kill(pid: int, expected: Sequence[str]) -> None:
    """SIGKILL exactly the process that had this command line, and wait until it is gone."""
    with _pinned(pid) as descriptor:
        # what is read now cannot be another process's later
        if descriptor is not None and command_line(pid) == list(expected):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            _wait_gone(descriptor, 30.0)


def await_exit(pid: int, limit_seconds: float) -> None:
    """Wait for a process that is about to end: its command line is gone before its files, ports and locks are."""
    with _pinned(pid) as descriptor:
        if descriptor is not None:
            _wait_gone(descriptor, limit_seconds)


@contextlib.contextmanager
def _pinned(pid: int) -> Iterator[int | None]:
    """A descriptor of the process, None if there is none; its pid is not given to another meanwhile."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _wait_gone(descriptor: int, limit_seconds: float) -> None:
    poll = select.poll()  # select() takes no descriptor above 1023
    poll.register(descriptor, select.POLLIN)
    poll.poll(limit_seconds * 1000)


def kill_left_behind(root: Path) -> list[int]:
    """Kill the storage daemons and qemu-img at work below `root` (absolute) that outlived the service they served."""
    inside = f"{root}/"
    killed = []
    for pid, arguments in processes():
        if Path(arguments[0]).name in (QEMU_IMG, STORAGE_DAEMON) and any(inside in part for part in arguments[1:]):
            kill(pid, arguments)
            killed.append(pid)
    return killed
