"""The worker: a throw-away VM without network in which a guest's disks are opened, so that nothing of ours reads them.

Inside, a kernel and busybox; no program of the guest's ever runs. One port leads out, and what comes through it is
believed no more than the disks are: lengths and waiting are bounded here. A worker taken over from inside has the
scratch copies of one server's volumes, and nothing else.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from agent.protocol.errors import RecoveryError, SiteError, ToolMissing
from recovery.repair import cpio, worker_image
from recovery.repair.plain import plain
from recovery.sites.local.accel import KVM
from recovery.sites.local.tools import last_line, tool

START_SECONDS = 120.0
COMMAND_SECONDS = 120.0
MEMORY_MIB = 768
MAX_OUTPUT_BYTES = 256 << 20
_CONSOLE_BYTES = 256 << 10
_COMMAND_LINE = "console=ttyS0 quiet panic=-1 mitigations=off nokaslr no_timer_check tsc=reliable random.trust_cpu=on"
_WAY_OUT = "look at the worker's last words; a damaged disk may need fsck, or take an older point"


class CommandFailed(RecoveryError):
    """A command inside ended with another status than 0; the message has its last words."""

    code = "worker_command"
    default_hint = _WAY_OUT

    def __init__(self, message: str, hint: str | None = None, *, status: int = 1) -> None:
        super().__init__(message, hint)
        self.status = status


class Worker:
    """A running worker with these disks (qcow2 files) as /dev/vda, /dev/vdb... A context; leaving it kills the worker.

    `stopped` is asked while something is awaited: the repair is to be given up when it says yes. `brought` are files
    that it has beside its own.
    Raises ToolMissing, SiteError (QEMU does not start), RecoveryError (the worker died, took too long, was given up).
    """

    def __init__(
        self,
        disks: Sequence[Path],
        accel: str,
        stopped: Callable[[], bool] = lambda: False,
        brought: Sequence[cpio.Entry] = (),
    ) -> None:
        self._disks = disks
        self._brought = brought
        self._accel = accel
        self._stopped = stopped
        self._loads: dict[str, tuple[str, ...]] = {}
        self._received = bytearray()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Worker:
        with contextlib.ExitStack() as undo:
            image = worker_image.build(self._brought)
            self._loads = image.loads
            # files without names: a service that is killed leaves nothing behind
            archive = undo.enter_context(tempfile.TemporaryFile())
            archive.write(image.archive)
            archive.flush()
            self._log = undo.enter_context(tempfile.TemporaryFile())
            self._port, port = socket.socketpair()
            undo.enter_context(self._port)
            read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            self._console = undo.enter_context(open(read_end, "rb", buffering=0))
            fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, _CONSOLE_BYTES)
            with port, open(write_end, "wb") as console:
                self._qemu = subprocess.Popen(
                    self._command(image.kernel, archive.fileno(), port.fileno(), console.fileno()),
                    stdin=subprocess.DEVNULL,
                    stdout=self._log,
                    stderr=self._log,
                    pass_fds=[archive.fileno(), port.fileno(), console.fileno()],
                    start_new_session=True,
                )
            undo.callback(self._end)
            deadline = time.monotonic() + START_SECONDS
            if self._line(deadline) != "ready":
                raise self._lost("said something else than that it is ready")
            archive.truncate(0)  # it was loaded
            self._stack = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def run(self, *command: str, limit_seconds: float = COMMAND_SECONDS) -> bytes:
        """Run a program of the worker's; its output. Raises CommandFailed."""
        return self.shell(shlex.join(command), limit_seconds=limit_seconds)

    def shell(self, line: str, limit_seconds: float = COMMAND_SECONDS) -> bytes:
        """Run one line of shell; its output. Raises CommandFailed."""
        if "\n" in line:
            raise RecoveryError(f"a name with a line break is not repaired: {line!r}")
        deadline = time.monotonic() + limit_seconds
        self._send(line.encode(errors="surrogateescape") + b"\n")
        answer = self._line(deadline).split()
        if len(answer) != 3 or not all(part.isascii() and part.isdigit() for part in answer):
            raise self._lost("answered something that is no answer")
        status, output_bytes, error_bytes = (int(part) for part in answer)
        if output_bytes + error_bytes > MAX_OUTPUT_BYTES:
            raise self._lost(f"wants to send {output_bytes + error_bytes} bytes")
        output = self._exactly(output_bytes, deadline)
        errors = self._exactly(error_bytes, deadline)
        if status != 0:
            words = plain(last_line(errors.decode(errors="replace"))) or f"status {status}"
            raise CommandFailed(f"in the worker, {line[:200]!r} failed: {words}", status=status)
        return output

    def put(self, content: bytes, path: str) -> None:
        """Store content in one of the worker's own files."""
        # dd reads exactly so much from the port: what follows is the next command
        quoted = shlex.quote(path)
        copy = f"dd bs={len(content)} count=1 iflag=fullblock <&3 2>/dev/null >{quoted}" if content else f": >{quoted}"
        self._send(copy.encode() + b"\n" + content)
        self._answered_empty(time.monotonic() + COMMAND_SECONDS)

    def load(self, driver: str) -> bool:
        """Load a kernel module; False if the worker has none of this name."""
        modules = self._loads.get(driver.replace("-", "_"))
        if modules is None:
            return False
        for name in modules:
            with contextlib.suppress(CommandFailed):  # loaded already
                self.run("insmod", f"/modules/{name}.ko")
        return True

    def power_off(self) -> None:
        """After everything was unmounted: all that was written is in the disks' files when this returns."""
        self.run("sync")
        self._port.shutdown(socket.SHUT_WR)  # init's loop ends, and it powers off
        try:
            self._qemu.wait(COMMAND_SECONDS)
        except subprocess.TimeoutExpired:
            raise self._lost("does not power off") from None
        if self._qemu.returncode != 0:
            raise self._lost(f"ended with status {self._qemu.returncode}")

    def _command(self, kernel: Path, archive: int, port: int, console: int) -> list[str]:
        command = [tool("setpriv"), "--pdeathsig", "KILL", tool("qemu-system-x86_64")]
        command += ["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-nic", "none"]
        command += ["-machine", "pc", "-accel", KVM if self._accel == KVM else "tcg"]
        command += ["-cpu", "host" if self._accel == KVM else "max", "-m", f"{MEMORY_MIB}M"]
        command += ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]
        command += ["-kernel", str(kernel), "-initrd", f"/proc/self/fd/{archive}", "-append", _COMMAND_LINE]
        # a pipe that is read when all is over: a kernel that talks without end waits, and fills no disk
        command += ["-serial", f"file:/proc/self/fd/{console}"]
        command += ["-device", "virtio-serial-pci", "-chardev", f"socket,id=port,fd={port}"]
        command += ["-device", "virtserialport,chardev=port,name=understudy"]
        for index, disk in enumerate(self._disks):
            file = {"driver": "file", "filename": str(disk)}
            node = {"driver": "qcow2", "node-name": f"disk{index}", "discard": "unmap", "file": file}
            command += ["-blockdev", json.dumps(node), "-device", f"virtio-blk-pci,drive=disk{index}"]
        return command

    def _end(self) -> None:
        self._qemu.kill()
        self._qemu.wait()

    def _send(self, content: bytes) -> None:
        self._port.settimeout(COMMAND_SECONDS)
        try:
            self._port.sendall(content)
        except OSError as error:
            raise self._lost(f"takes no more ({error})") from error

    def _answered_empty(self, deadline: float) -> None:
        if self._line(deadline) != "0 0 0":
            raise self._lost("could not store what it was sent")

    def _line(self, deadline: float) -> str:
        while b"\n" not in self._received:
            if len(self._received) > 1024:
                raise self._lost("answered something that is no answer")
            self._receive(1024, deadline)
        line, _, rest = bytes(self._received).partition(b"\n")
        self._received = bytearray(rest)
        return line.decode(errors="replace")

    def _exactly(self, length: int, deadline: float) -> bytes:
        while len(self._received) < length:
            self._receive(1 << 20, deadline)
        content = bytes(self._received[:length])
        del self._received[:length]
        return content

    def _receive(self, limit_bytes: int, deadline: float) -> None:
        while True:
            if self._stopped():
                raise RecoveryError("the boot repair was stopped", "it begins again when the run goes on")
            left_seconds = deadline - time.monotonic()
            if left_seconds <= 0:
                raise self._lost("took too long")
            self._port.settimeout(min(left_seconds, 0.5))
            try:
                received = self._port.recv(limit_bytes)
            except TimeoutError:
                continue
            except OSError as error:
                raise self._lost(f"cannot be read ({error})") from error
            if not received:
                raise self._lost("ended")
            self._received += received
            return

    def _lost(self, what: str) -> RecoveryError | SiteError:
        """The error that the worker's end is; with what QEMU or its kernel said last."""
        if self._qemu.poll() is None:
            self._qemu.kill()
        self._qemu.wait()
        self._log.seek(0)
        said = plain(last_line(self._log.read().decode(errors="replace")))
        if said:
            return SiteError(f"the worker for boot repair does not run: {said}")
        last = plain(last_line(self._console_text()))
        return RecoveryError(f"the worker for boot repair {what}; its console's last line: {last or 'none'}", _WAY_OUT)

    def _console_text(self) -> str:
        return (self._console.read(_CONSOLE_BYTES) or b"").decode(errors="replace")


def unavailable() -> str | None:
    """Why no worker can be made on this machine, or None."""
    try:
        for name in ("setpriv", "qemu-system-x86_64", "qemu-img"):
            tool(name)
        worker_image.check()
    except ToolMissing as error:
        return str(error)
    return None
