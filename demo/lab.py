"""The machines and programs of the demonstration: the on-prem server in QEMU, the service, the command lines.

Everything runs in sessions of its own, so that Ctrl-C reaches only the demonstration, which then takes it all down.
Everything's command line names the demonstration's folder; that is how leftovers of a killed demonstration are found.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

REPOSITORY = Path(__file__).resolve().parent.parent
PROGRAMS = REPOSITORY / ".venv/bin"
HOST_AS_SEEN_BY_GUESTS = "10.0.2.2"  # QEMU's user network; the host's loopback answers there

T = TypeVar("T")


class DemoError(Exception):
    """A step did not do what it should. `log` is the file whose last lines tell more."""

    def __init__(self, message: str, log: Path | None = None) -> None:
        super().__init__(message)
        self.log = log


def wait_for(what: str, look: Callable[[], T | None], limit_seconds: float, log: Path | None = None) -> T:
    """Look every half second until there is something. Raises DemoError when the limit has passed."""
    deadline = time.monotonic() + limit_seconds
    while True:
        found = look()
        if found is not None:
            return found
        if time.monotonic() > deadline:
            raise DemoError(f"{what} did not come within {limit_seconds:.0f} s", log)
        time.sleep(0.5)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _environment() -> dict[str, str]:
    """Ours, but for settings that would lead the command lines to somebody's real service."""
    return {name: value for name, value in os.environ.items() if not name.startswith("UNDERSTUDY_")}


class Program:
    """A program that runs in the background, with its output in a log file."""

    def __init__(self, command: list[str | Path], log: Path) -> None:
        self.log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=_environment(),
            )

    @property
    def exit_status(self) -> int | None:
        return self._process.poll()

    def kill(self) -> None:
        """SIGKILL: without warning."""
        self._process.kill()
        self._process.wait()

    def end(self, limit_seconds: float = 20) -> int:
        """SIGTERM, and SIGKILL if that does not help. Returns the exit status."""
        self._process.terminate()
        try:
            return self._process.wait(limit_seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return -signal.SIGKILL


class OnPremServer(Program):
    """The protected server: QEMU on a raw disk file. Always software emulation, as /dev/kvm alone proves nothing.

    `ide`: an older machine, whose disk is called /dev/sda."""

    def __init__(self, folder: Path, disk: Path, machine_id: str, *, ide: bool = False) -> None:
        self.console = folder / "onprem-console.log"
        self.http_port = free_port()
        super().__init__(
            [
                "qemu-system-x86_64", "-name", "onprem-web01", "-uuid", machine_id,
                "-machine", "pc" if ide else "q35", "-accel", "tcg,thread=multi",
                "-cpu", "max", "-smp", "2", "-m", "768",
                "-display", "none", "-monitor", "none", "-no-reboot", "-serial", f"file:{self.console}",
                "-drive", f"file={disk},format=raw,if={'ide' if ide else 'virtio'}",
                "-nic", f"user,model=virtio-net-pci,hostfwd=tcp:127.0.0.1:{self.http_port}-:8000",
                "-device", "virtio-rng-pci", "-qmp", f"unix:{folder / 'onprem-qmp.sock'},server=on,wait=off",
            ],
            folder / "onprem-qemu.log",
        )  # fmt: skip
        self._qmp = folder / "onprem-qmp.sock"

    def shut_down(self, limit_seconds: float = 90) -> None:
        """Press the power button and wait. Raises DemoError."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self._qmp))
            with connection.makefile("rw") as stream:
                stream.readline()  # the greeting
                for command in ("qmp_capabilities", "system_powerdown"):
                    stream.write(json.dumps({"execute": command}) + "\n")
                    stream.flush()
                    stream.readline()
                wait_for("the on-prem server's shutdown", lambda: self.exit_status, limit_seconds, self.console)


class CommandLine:
    """`understudy` or `understudy-agent`, as a user would call them."""

    def __init__(self, program: str, options: list[str | Path], log: Path) -> None:
        self._program, self._options, self._log = program, options, log

    def line(self, *arguments: str | Path) -> list[str | Path]:
        command, *rest = arguments
        return [PROGRAMS / self._program, command, *rest, *self._options]

    def json(self, *arguments: str | Path, limit_seconds: float = 900) -> Any:
        """Run it with --json; the document it prints. Raises DemoError."""
        command = [*self.line(*arguments), "--json"]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=limit_seconds,
                start_new_session=True, env=_environment(),
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise DemoError(f"{self._program} {arguments[0]} did not end within {limit_seconds:.0f} s") from None
        with self._log.open("a") as log:
            log.write(f"$ {' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
        if done.returncode != 0:
            raise DemoError(f"{self._program} {arguments[0]} failed (exit {done.returncode}): {done.stderr.strip()}")
        try:
            return json.loads(done.stdout)
        except json.JSONDecodeError:
            raise DemoError(f"{self._program} {arguments[0]} --json printed something else", self._log) from None

    def stream(self, show_line: Callable[[str], None], *arguments: str | Path) -> None:
        """Run it and hand on each line it prints as it comes. Raises DemoError."""
        with subprocess.Popen(
            self.line(*arguments), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, start_new_session=True, env=_environment(),
        ) as process:  # fmt: skip
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    show_line(line.rstrip())
            except BaseException:
                process.kill()
                raise
        if process.returncode != 0:
            raise DemoError(f"{self._program} {arguments[0]} failed (exit {process.returncode})")


def processes_of(folder: Path) -> dict[int, str]:
    """Process id -> command line of all whose command line names the folder."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            continue  # it has ended
        if f"{folder}/" in line and int(path.parent.name) != os.getpid():
            found[int(path.parent.name)] = line
    return found


def kill_processes_of(folder: Path) -> None:
    """SIGKILL to all that processes_of finds, until there is none."""
    deadline = time.monotonic() + 10
    while (found := processes_of(folder)) and time.monotonic() < deadline:
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.2)
