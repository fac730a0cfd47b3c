"""How the agent yields to the server's own load: processor and disk priority.

Low is nice 10 and best-effort I/O of the last class: behind everybody else, but never starved, as idle I/O would be on
a disk that is always busy; then the lag would grow without end. While a filesystem is frozen the server waits for us,
and a low priority would make it wait longer: `raised` is for that.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path


class Priority(enum.StrEnum):
    LOW = "low"
    NORMAL = "normal"


_NICE = {Priority.LOW: 10, Priority.NORMAL: 0}
_IO_LEVEL = {Priority.LOW: 7, Priority.NORMAL: 4}  # of 0 to 7; 4 is what a process has by default
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30, "ppc64le": 273, "s390x": 282}
_WHO_PROCESS, _BEST_EFFORT = 1, 2  # linux/ioprio.h; one "process" is one thread here


def apply(priority: Priority) -> str:
    """Give it to all threads of this process; those and the processes that they begin later inherit it.

    Returns "", or words for the operator on what could not be done here."""
    if sys.platform != "linux":
        return f"priority {priority}: only Linux is supported so far, so this process runs as it was started"
    problems = set()
    for task in Path("/proc/self/task").iterdir():
        problems |= _of_thread(int(task.name), priority)
    return f"priority {priority}: {', '.join(sorted(problems))}" if problems else ""


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Inside, a process of low priority has the normal one, if it may. Writes nothing, so it may enclose a freeze."""
    low = sys.platform == "linux" and os.getpriority(os.PRIO_PROCESS, 0) >= _NICE[Priority.LOW]
    if low:
        apply(Priority.NORMAL)
    try:
        yield
    finally:
        if low:
            apply(Priority.LOW)


def _of_thread(thread: int, priority: Priority) -> set[str]:
    problems = set()
    try:
        os.setpriority(os.PRIO_PROCESS, thread, _NICE[priority])
    except ProcessLookupError:
        return set()  # it has ended meanwhile
    except OSError as error:
        problems.add(f"the processor priority stays as it is: {error.strerror}")
    number = _IOPRIO_SET.get(platform.machine())
    if number is None:
        return problems | {f"the disk priority cannot be set on {platform.machine()}"}
    value = _BEST_EFFORT << 13 | _IO_LEVEL[priority]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(number, _WHO_PROCESS, thread, value) and Path(f"/proc/self/task/{thread}").exists():
        problems.add(f"the disk priority stays as it is: {os.strerror(ctypes.get_errno())}")
    return problems
