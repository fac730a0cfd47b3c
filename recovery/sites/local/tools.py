"""Running QEMU's command-line tools, and finding those that a killed service left behind."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from agent.protocol.errors import Conflict, SiteError, StorageError, StorageFull, ToolMissing

QEMU_IMG = "qemu-img"
_END_SECONDS = 30.0
_LOOK_SECONDS = 0.02


def tool(name: str) -> str:
    """Its path. Raises ToolMissing."""
    path = shutil.which(name)
    if path is None:
        raise ToolMissing(f"{name} is not installed on this machine")
    return path


def qemu_img(*arguments: str, doing: str, changing: Path | None = None) -> str:
    """Run qemu-img; returns stdout. `doing` says what for in errors: "merge point x". `changing`: the file that it
    writes to."""
    with contextlib.nullcontext() if changing is None else at_work(changing.parent) as held:
        done = subprocess.run(
            [tool(QEMU_IMG), *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            pass_fds=[] if held is None else [held],
        )
    if done.returncode != 0:
        raise failure(doing, done.stderr)
    return done.stdout


@contextlib.contextmanager
def at_work(folder: Path) -> Iterator[int]:
    """A descriptor for a tool to inherit. While any process has it, `end_left_behind` waits: also for one that its
    dying parent had only just made, which is no tool yet, and by no name to be told from others."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield descriptor
    finally:
        os.close(descriptor)


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
    return lines[-1].removeprefix("qemu-img: ") if lines else ""


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
            _wait_gone(descriptor, _END_SECONDS)


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


def end_left_behind(root: Path) -> None:
    """Kill each qemu-img at work below `root` (absolute) that outlived the service it served, and
    wait until nobody works in `root/*/*` any more. Raises Conflict if that does not come about."""
    _kill_tools(root)
    deadline = time.monotonic() + _END_SECONDS
    for folder in root.glob("*/*/"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            while not _locked(descriptor):
                if time.monotonic() > deadline:
                    raise Conflict(f"another process works in {folder}", f"see what it is: fuser -v {folder}")
                time.sleep(_LOOK_SECONDS)
                _kill_tools(root)
        finally:
            os.close(descriptor)


def _locked(descriptor: int) -> bool:
    """Nobody else has the folder's lock now."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _kill_tools(root: Path) -> None:
    inside = f"{root}/"
    for pid, arguments in processes():
        if Path(arguments[0]).name == QEMU_IMG and any(inside in part for part in arguments[1:]):
            kill(pid, arguments)
