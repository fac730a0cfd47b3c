"""A TCP relay that does to the line what lines do: cut, reset, stall, slow, corrupt, duplicate, refuse, go silent.

    with Relay(service.port) as relay:
        agent = Agent(folder, service, url=relay.url)
        relay.arm(Fault(Harm.RESET, after_bytes=100_000))

A fault strikes once, when `after_bytes` have passed towards the service since it was armed. Everything that the relay
chooses itself comes from its seed.
"""

from __future__ import annotations

import contextlib
import enum
import random
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

_CHUNK_BYTES = 16 << 10


class Harm(enum.StrEnum):
    CUT = "cut"
    """All connections end in order, in the middle of what they carry."""
    RESET = "reset"
    STALL = "stall"
    """Nothing passes for `seconds`; then everything goes on."""
    SLOW = "slow"
    """For `seconds`, 64 KiB a second."""
    CORRUPT = "corrupt"
    """One bit of one byte."""
    DUPLICATE = "duplicate"
    """A piece arrives twice."""
    REPLAY = "replay"
    """All that one connection has sent so far arrives once more, on a connection of its own."""
    REFUSE = "refuse"
    """The connections are cut, and for `seconds` no new one is served."""
    HALF_OPEN = "half_open"
    """The connections that there are stay open, and nothing ever passes again, until they are reset after `seconds`."""


@dataclass(frozen=True)
class Fault:
    harm: Harm
    after_bytes: int = 0
    seconds: float = 2.0


def random_fault(rng: random.Random, most_bytes: int) -> Fault:
    return Fault(rng.choice(list(Harm)), rng.randrange(most_bytes), rng.uniform(0.2, 2.0))


class Relay:
    """Listens on a port of its own. `struck` is set once the armed fault has happened."""

    def __init__(self, port: int, seed: int = 0) -> None:
        self._target = ("127.0.0.1", port)
        self._rng = random.Random(seed)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listening.getsockname()[1])
        self.url = f"https://127.0.0.1:{self.port}"
        self.struck = threading.Event()
        self.meanwhile: Callable[[], None] = lambda: None
        """Called before each piece passes towards the service, which waits for it."""
        self.passed_bytes = 0
        """Towards the service, so far."""
        self._lock = threading.Lock()
        self._lines: list[_Line] = []
        self._fault: Fault | None = None
        self._remaining_bytes = 0
        self._slow_until = self._stalled_until = self._refused_until = 0.0
        self._closed = False
        self._threads: list[threading.Thread] = []
        self._spawn(self._accept)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        for line in self._present():
            line.shut()
        for thread in self._threads:
            thread.join(60)
        self._listening.close()

    def arm(self, fault: Fault) -> None:
        with self._lock:
            self._fault, self._remaining_bytes = fault, fault.after_bytes
            self.struck.clear()

    def disarm(self) -> None:
        """The line is well again."""
        with self._lock:
            self._fault = None
            self._slow_until = self._stalled_until = self._refused_until = 0.0

    # --- the line ---

    def _spawn(self, work: object, *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _present(self) -> list[_Line]:
        with self._lock:
            return list(self._lines)

    def _accept(self) -> None:
        while not self._closed:
            try:
                near, _ = self._listening.accept()
            except OSError:
                return
            try:
                if time.monotonic() < self._refused_until:
                    raise ConnectionRefusedError
                far = socket.create_connection(self._target, timeout=60)
            except OSError:
                _reset(near)
                near.close()
                continue
            far.settimeout(None)
            line = _Line(near, far)
            with self._lock:
                self._lines.append(line)
            if self._closed:
                line.shut()
            self._spawn(self._pump, line, near, far, True)
            self._spawn(self._pump, line, far, near, False)

    def _pump(self, line: _Line, source: socket.socket, sink: socket.socket, upward: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_CHUNK_BYTES):
                if upward:
                    self.meanwhile()
                    with self._lock:
                        self.passed_bytes += len(data)
                    line.sent += data[: max(0, (1 << 20) - len(line.sent))]
                    data = self._pass(line, data)
                self._wait(line, len(data))
                sink.sendall(data)
            if not line.ended:
                sink.shutdown(socket.SHUT_WR)
                line.pump_ended()
                return
        line.shut()
        line.pump_ended()

    def _wait(self, line: _Line, size_bytes: int) -> None:
        while line.silent or time.monotonic() < self._stalled_until:
            if self._closed or line.ended:
                raise ConnectionAbortedError
            time.sleep(0.02)
        if time.monotonic() < self._slow_until:
            time.sleep(size_bytes / (64 << 10))

    def _pass(self, line: _Line, data: bytes) -> bytes:
        """Count what passes; strike when it is time. Returns what arrives instead."""
        with self._lock:
            fault = self._fault
            if fault is None:
                return data
            self._remaining_bytes -= len(data)
            if self._remaining_bytes >= 0:
                return data
            self._fault = None
        until = time.monotonic() + fault.seconds
        match fault.harm:
            case Harm.CUT | Harm.RESET | Harm.REFUSE:
                if fault.harm is Harm.REFUSE:
                    self._refused_until = until
                for other in self._present():
                    other.shut(reset=fault.harm is Harm.RESET)
            case Harm.STALL:
                self._stalled_until = until
            case Harm.SLOW:
                self._slow_until = until
            case Harm.HALF_OPEN:
                for other in self._present():
                    other.silent = True
                self._spawn(self._reset_later, self._present(), until)
            case Harm.CORRUPT:
                at = self._rng.randrange(len(data))
                data = data[:at] + bytes([data[at] ^ (1 << self._rng.randrange(8))]) + data[at + 1 :]
            case Harm.DUPLICATE:
                data += data
            case Harm.REPLAY:
                self._spawn(self._replay, bytes(line.sent))
        self.struck.set()
        return data

    def _reset_later(self, lines: list[_Line], until: float) -> None:
        while not self._closed and time.monotonic() < until:
            time.sleep(0.02)
        for line in lines:
            line.shut(reset=True)

    def _replay(self, sent: bytes) -> None:
        with contextlib.suppress(OSError), socket.create_connection(self._target, timeout=60) as again:
            again.sendall(sent)
            while again.recv(_CHUNK_BYTES):
                pass


class _Line:
    """The two sockets of one connection; closed by the second of its two pumps."""

    def __init__(self, near: socket.socket, far: socket.socket) -> None:
        self.sent = bytearray()
        self.silent = False
        self.ended = False
        self._sockets = (near, far)
        self._pumps = 2
        self._lock = threading.Lock()

    def shut(self, *, reset: bool = False) -> None:
        """End it; whoever reads it is woken. Nothing is told to either end of a reset before the sockets are closed."""
        self.ended = True
        for one in self._sockets:
            if reset:
                _reset(one)
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RD if reset else socket.SHUT_RDWR)

    def pump_ended(self) -> None:
        with self._lock:
            self._pumps -= 1
            if self._pumps == 0:
                for one in self._sockets:
                    one.close()


def _reset(connection: socket.socket) -> None:
    """Closing it from now on resets the connection instead of ending it in order."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
