"""An open volume: one qemu-storage-daemon, which serves one qcow2 file, and the NBD connections to it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO

from agent.protocol.buffers import ENVIRONMENT
from agent.protocol.errors import Conflict, StorageError
from recovery.sites.local.durable import storage_errors
from recovery.sites.local.nbd import Buffer, NBDClient
from recovery.sites.local.tools import STORAGE_DAEMON, at_work, failure, tool

CONNECTIONS = 4
CLOSE_SECONDS = 60.0
"""How long the daemon may take to write what it holds in memory before it is killed."""
_EXPORT = "volume"


class LocalVolumeIO:
    """VolumeIO on a qcow2 file (absolute path) with its backing chain.

    `on_close` is called once, after the daemon has ended and the file is free. Raises StorageError, StorageFull,
    ToolMissing; Conflict if another process has the file, and for writes to one opened read-only.
    """

    def __init__(self, path: Path, *, writable: bool, on_close: Callable[[], None]) -> None:
        self._path = path
        self._writable = writable
        self._on_close = on_close
        self._close_lock = threading.Lock()
        self._closed = False
        with storage_errors(f"open {path}"), tempfile.TemporaryFile() as stderr:
            listening, connected = _listen_and_connect(CONNECTIONS)
            with listening, at_work(path.parent) as held:
                self._daemon = _start_daemon(path, writable, listening, held, stderr)
            # now only the daemon has the listening socket: if it dies, the connections end
            try:
                self._client = NBDClient(connected, _EXPORT, path.name)
            except StorageError as error:
                self._end_daemon()
                stderr.seek(0)
                raise failure(f"open {path}", stderr.read().decode(errors="replace") or str(error)) from None

    @property
    def size_bytes(self) -> int:
        return self._client.size_bytes

    def read(self, offset: int, length: int) -> bytearray:
        return self._client.read(offset, length)

    def read_into(self, offset: int, into: memoryview) -> None:
        self._client.read_into(offset, into)

    def write(self, offset: int, data: Buffer) -> None:
        self._check_writable()
        self._client.write(offset, data)

    def zero(self, offset: int, length: int) -> None:
        self._check_writable()
        self._client.zero(offset, length)

    def flush(self) -> None:
        self._client.flush()

    def close(self) -> None:
        with self._close_lock:
            if self._closed:
                return
            self._closed = True
            self._client.close()
            self._end_daemon()
        self._on_close()

    def _check_writable(self) -> None:
        if not self._writable:
            raise Conflict(f"{self._path.name} is open for reading only", "recovery points never change")

    def _end_daemon(self) -> None:
        self._daemon.terminate()
        try:
            self._daemon.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._daemon.kill()
            self._daemon.wait()


def _listen_and_connect(count: int) -> tuple[socket.socket, list[socket.socket]]:
    """A listening unix socket with connections that wait for whoever gets it; nobody else can: its path is gone."""
    with contextlib.ExitStack() as undo:
        listening = undo.enter_context(socket.socket(socket.AF_UNIX))
        connected = [undo.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(count)]
        with tempfile.TemporaryDirectory(prefix="understudy-") as folder:
            listening.bind(f"{folder}/nbd")
            listening.listen(count)
            for connection in connected:
                connection.connect(f"{folder}/nbd")
        undo.pop_all()
    return listening, connected


def _takes_direct(path: Path) -> bool:
    """Does the filesystem know I/O round its cache? Not all do (tmpfs)."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _start_daemon(
    path: Path, writable: bool, listening: socket.socket, held: int, stderr: IO[bytes]
) -> subprocess.Popen[bytes]:
    direct = writable and _takes_direct(path)
    node = {
        "driver": "qcow2",
        "node-name": _EXPORT,
        "read-only": not writable,
        "discard": "unmap",
        "detect-zeroes": "off",
        # What is written here is not read again soon, and what it stands on is read once to be patched: a cache would
        # only cost time and memory. Handed down to the files below.
        "cache": {"direct": direct},
        "file": {
            "driver": "file",
            "filename": str(path),
            "discard": "unmap",
            "aio": "native" if direct else "threads",  # native I/O only works round the cache
        },
    }
    return subprocess.Popen(
        [
            tool(STORAGE_DAEMON),
            "--blockdev",
            json.dumps(node),
            "--nbd-server",
            f"addr.type=fd,addr.str={listening.fileno()},max-connections=0",
            "--export",
            f"nbd,id=export,node-name={_EXPORT},name={_EXPORT},writable={'on' if writable else 'off'}",
        ],
        env={**os.environ, **ENVIRONMENT},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        pass_fds=[listening.fileno(), held],
        # a Ctrl-C at the service's terminal must not take the volumes away under a push that is being ended in order
        start_new_session=True,
    )
