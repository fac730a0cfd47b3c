"""The process that freezes: `python -m agent.consistency.freezer LIMIT_SECONDS MOUNTPOINT...`.

A freeze outlives the process that asked for it, so a process of its own asks for it, which does nothing else and thaws
whatever happens: told to, stdin closed (the agent is dead), a signal, or LIMIT_SECONDS after the first FIFREEZE.

Mountpoints are frozen in the order given and thawed in reverse. Commands come as lines on stdin, and each is answered
by one line of JSON on stdout; the first line, {"ready": true} or {"error", "errno", "mountpoint"}, comes unasked.

    freeze   {"frozen": true, "skipped": [mountpoints that cannot be frozen]}
             {"frozen": false, "error", "errno", "mountpoint"}         nothing is left frozen
    thaw     {"thawed": true, "held", "seconds"}    held: nothing was thawed before this command, by anybody

Between freeze and thaw nothing here opens, imports, logs or allocates beyond what is locked in memory.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from agent.consistency.linux import freeze_filesystem, lock_memory, sync_filesystem, thaw_filesystem

_STDIN, _STDOUT = 0, 1


class Spell:
    """One freeze and its thaw. FIFREEZE can take long, so it runs in a thread and the limit thaws beside it:
    what waits inside FIFREEZE then may well wait for what is frozen already."""

    def __init__(self, filesystems: Sequence[tuple[str, int]], limit_seconds: float) -> None:
        self._filesystems = filesystems
        self._limit_seconds = limit_seconds
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._frozen: list[int] = []
        self._answered = False
        self._ended = False
        self._held = True
        self._seconds = 0.0
        self._thread = threading.Thread(target=self._freeze)
        self._thread.start()

    def remaining_seconds(self) -> float | None:
        """How long until the limit; None once all is thawed."""
        return None if self._ended else max(0.0, self._began + self._limit_seconds - time.monotonic())

    def expire(self) -> None:
        """Thaw because the limit is over; the freeze does not count any more."""
        self.thaw()
        self._held = False
        self._answer({"frozen": False, "error": "the limit was over before all was frozen", "errno": errno.ETIMEDOUT})

    def thaw(self) -> dict[str, Any]:
        """Thaw what is frozen, in reverse. Again and again is harmless: the first time counts."""
        with self._lock:
            if not self._ended:
                self._ended = True
                self._thaw_all()
                self._seconds = time.monotonic() - self._began
        return {"thawed": True, "held": self._held, "seconds": self._seconds}

    def join(self) -> None:
        """Wait for a FIFREEZE that is still under way: what it froze is thawed by then."""
        self._thread.join()

    def _freeze(self) -> None:
        skipped = []
        for mountpoint, descriptor in self._filesystems:
            try:
                freeze_filesystem(descriptor)
            except OSError as error:
                if error.errno == errno.EOPNOTSUPP:
                    skipped.append(mountpoint)
                    with contextlib.suppress(OSError):  # the next best; it is reported as not frozen anyway
                        sync_filesystem(descriptor)
                    continue
                self.thaw()
                self._answer({"frozen": False, **_failure(error, mountpoint)})
                return
            with self._lock:
                self._frozen.append(descriptor)
                if self._ended:  # thawed while we waited inside FIFREEZE
                    self._thaw_all()
                    return
        self._answer({"frozen": True, "skipped": skipped})

    def _thaw_all(self) -> None:
        while self._frozen:
            try:
                thaw_filesystem(self._frozen.pop())
            except OSError:  # EINVAL: somebody thawed it before us
                self._held = False

    def _answer(self, answer: dict[str, Any]) -> None:
        with self._lock:
            first, self._answered = not self._answered, True
        if first:
            _say(answer)


def main(arguments: Sequence[str]) -> int:
    """Serve the commands of stdin until it ends or a signal comes; thaws before it returns."""
    limit_seconds = float(arguments[0])
    filesystems = []
    for mountpoint in arguments[1:]:
        try:
            filesystems.append((mountpoint, os.open(mountpoint, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)))
        except OSError as error:
            _say(_failure(error, mountpoint))
            return 1
    wake, wake_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_end, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # the byte in `wake` is what counts
    with contextlib.suppress(OSError):  # whoever thaws must not be the one that is killed when memory is short
        _set_out_of_memory_score("-1000")
    gc.disable()
    try:
        lock_memory()
    except OSError as error:
        _say(_failure(error, "the freezer's own memory"))
        return 1
    _say({"ready": True})
    spell: Spell | None = None
    try:
        pending = b""
        while True:
            ready, _, _ = select.select([_STDIN, wake], [], [], spell.remaining_seconds() if spell else None)
            if not ready:
                if spell is not None:
                    spell.expire()
                continue
            if wake in ready:
                return 0
            received = os.read(_STDIN, 4096)
            if not received:
                return 0
            *commands, pending = (pending + received).split(b"\n")
            for command in commands:
                if command == b"freeze":
                    if spell is not None:
                        spell.thaw()
                        spell.join()
                    spell = Spell(filesystems, limit_seconds)
                elif command == b"thaw" and spell is not None:
                    _say(spell.thaw())
    finally:
        if spell is not None:
            spell.thaw()
            spell.join()


def _say(answer: dict[str, Any]) -> None:
    """Whoever would read it may be dead; then stdin tells us so, and there is nothing else to do here."""
    with contextlib.suppress(BrokenPipeError):
        os.write(_STDOUT, json.dumps(answer).encode() + b"\n")


def _failure(error: OSError, mountpoint: str) -> dict[str, Any]:
    return {"error": error.strerror, "errno": error.errno, "mountpoint": mountpoint}


def _set_out_of_memory_score(score: str) -> None:
    descriptor = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, score.encode())
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
