"""Scripts of a plan: programs on the service's machine, which its administrator put into one folder."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from agent.protocol.errors import NotFound, RecoveryError
from recovery.clock import Clock

OUTPUT_BYTES = 4096
LOOK_SECONDS = 0.2
_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TZ")


class Scripts:
    """A plan names programs of `folder` and nothing else: whoever may write a plan may not run what he likes here.

    A script is run again when the service was killed meanwhile, so it has to be harmless to repeat."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def program(self, name: str) -> Path:
        """Raises NotFound."""
        path = self._folder / name
        if Path(name).name != name or not path.is_file() or not os.access(path, os.X_OK):
            there = ", ".join(sorted(entry.name for entry in self._entries())) or "none yet"
            hint = f"there are: {there}; an administrator puts it there and makes it executable"
            raise NotFound(f"there is no script {name!r} in {self._folder}", hint)
        return path

    def run(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str],
        facts: Mapping[str, Any],
        timeout_seconds: float,
        clock: Clock,
        interrupt: threading.Event,
    ) -> str | None:
        """Run it to its end; the end of what it wrote (both streams). None: interrupted, and it was killed.

        It finds `facts` as JSON on its standard input. Raises NotFound, RecoveryError (failed, took too long)."""
        command = [*_dies_with_us(), str(self.program(argv[0])), *argv[1:]]
        ours = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as written:
            given.write(json.dumps(facts).encode())
            given.seek(0)
            try:
                process = subprocess.Popen(
                    command,
                    stdin=given,
                    stdout=written,
                    stderr=written,
                    cwd=self._folder,
                    env={**ours, **environment},
                    start_new_session=True,
                )
            except OSError as error:
                raise RecoveryError(f"script {argv[0]} cannot be run: {error.strerror}") from None
            try:
                code = _await_end(process, timeout_seconds, clock, interrupt)
            finally:
                if process.poll() is None:
                    _kill(process)
            output = _end_of(written)
        if code is None:
            if interrupt.is_set():
                return None
            raise RecoveryError(f"script {argv[0]} took longer than {timeout_seconds:g} s{_shown(output)}")
        if code:
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit status {code}"
            raise RecoveryError(f"script {argv[0]} {how}{_shown(output)}")
        return output

    def _entries(self) -> list[Path]:
        try:
            return [entry for entry in self._folder.iterdir() if os.access(entry, os.X_OK) and entry.is_file()]
        except OSError:
            return []


def _await_end(
    process: subprocess.Popen[bytes], timeout_seconds: float, clock: Clock, interrupt: threading.Event
) -> int | None:
    deadline = clock.monotonic() + timeout_seconds
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(LOOK_SECONDS)
        if interrupt.is_set() or clock.monotonic() >= deadline:
            return None


def _kill(process: subprocess.Popen[bytes]) -> None:
    """It and what it started, unless that left its process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _dies_with_us() -> list[str]:
    """A service that is killed and started again runs the script anew: the first one must not run beside it."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []


def _end_of(written: IO[bytes]) -> str:
    written.seek(max(0, written.seek(0, os.SEEK_END) - OUTPUT_BYTES))
    return written.read().decode(errors="replace").strip()


def _shown(output: str) -> str:
    lines = output.splitlines()[-10:]
    return "\n".join(["", "the end of its output:", *(f"  | {line}" for line in lines), ""]) if lines else ""
