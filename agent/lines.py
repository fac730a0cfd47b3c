"""Lines to the service: a few, each kept full by a thread of its own.

A request goes on a line that is free. When none is, it follows the one under way on a busy line: over a long way an
answer comes a round trip and some work after its request, and for so long the line would carry nothing.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field

from agent.pacing.pace import Pace
from agent.transport import ANSWER_SECONDS, Buffer, Line, WireCount

LINES = 4
EACH = 2
"""Requests under way on one line, at most."""
FAR_SECONDS = 0.01
"""A service whose first answer takes longer is far."""
SMALL_BYTES = 16 << 10
"""A socket takes so much at once, even if the other end reads nothing."""
RATE_SAMPLE_BYTES = 256 << 10
RATE_WEIGHT = 0.2

_CUT = (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError)

Answer = tuple[int, bytes]


@dataclass(slots=True, eq=False)
class _Request:
    """`brief`: its answer is so short that it need not be heard before more is sent. `repeats`: how often it may go on
    another line at once, after a cut: all that there were may have been idle for too long."""

    method: str
    path: str
    body: Sequence[Buffer]
    headers: Mapping[str, str]
    silence_seconds: float
    brief: bool
    repeats: int = LINES
    answered: Future[Answer] = field(default_factory=Future)

    @property
    def size_bytes(self) -> int:
        return int(self.headers["Content-Length"])

    def answer(self, answer: Answer) -> None:
        with contextlib.suppress(InvalidStateError):  # who asked does not want to know any more
            self.answered.set_result(answer)

    def fail(self, error: BaseException) -> None:
        with contextlib.suppress(InvalidStateError):
            self.answered.set_exception(error)


class LinePool:
    """For many threads."""

    def __init__(
        self, host: str, port: int, context: ssl.SSLContext, server_hostname: str | None, pace: Pace | None = None
    ) -> None:
        """`pace` lets bodies go in slices, each when it may; volumes have a share each."""
        self.wire = WireCount()
        self.receive_rate: float | None = None
        """Bytes a second that one line brings while it brings something, lately; None until that is known."""
        self.pace = pace
        self._where = (host, port, context, server_hostname)
        self._changed = threading.Condition()
        self._waiting: deque[_Request] = deque()
        self._bells: set[socket.socket] = set()
        """One of each thread, rung when there is something to send while it may be waiting for an answer."""
        self._free = 0
        """Threads that have nothing to do, or are just beginning."""
        self._lines: set[Line] = set()
        self._most = LINES * EACH
        """Lines that there may be, but never more than LINES."""
        self.far = False
        """The service answers so late that a line should not wait for it."""
        self._much = self._closed = False

    @property
    def network_rate(self) -> float | None:
        """Bytes a second that the network takes over all lines, lately; None until that is known."""
        with self._changed:
            return float(sum(line.delivery_rate for line in self._lines)) or None

    def connect(self) -> None:
        """Make a line before there is a request for it."""
        with self._changed:
            self._start(1, early=True)

    def expect_much(self) -> None:
        """Much is about to be sent: if the service is far, all lines are made now, since each takes two round trips."""
        with self._changed:
            self._much = True
            self._spread()

    def keep(self, most: int) -> None:
        """From now on there are at most so many lines, and at least one: each takes memory at the service."""
        with self._changed:
            self._most = max(1, most)
            self._changed.notify_all()

    def ask(
        self,
        method: str,
        path: str,
        body: Sequence[Buffer],
        headers: Mapping[str, str],
        silence_seconds: float = ANSWER_SECONDS,
        *,
        brief: bool = False,
    ) -> Future[Answer]:
        """One request; its status and its body. `brief`: the answer will be short. Fails as Line does."""
        headers = {**headers, "Content-Length": str(sum(map(len, body)))}
        request = _Request(method, path, body, headers, silence_seconds, brief)
        with self._changed:
            if self._closed:
                request.fail(_closed())
            else:
                self._waiting.append(request)
                self._tell()
        return request.answered

    def close(self) -> None:
        """End all lines; requests without an answer fail with an OSError."""
        with self._changed:
            self._closed = True
            waiting, self._waiting = self._waiting, deque()
            for line in self._lines:
                line.cut()
            self._changed.notify_all()
        for request in waiting:
            request.fail(_closed())

    def _tell(self) -> None:
        """Somebody should send what waits. The lock is held, as in all that follows here."""
        if self._free < len(self._waiting):
            self._start(1, early=False)
        self._changed.notify()
        self._ring()

    def _ring(self) -> None:
        """Who waits for an answer may send meanwhile, if nobody is free to."""
        if self._waiting and not self._free:
            for bell in self._bells:
                with contextlib.suppress(OSError):  # it rings already
                    bell.send(b"!")

    def _start(self, count: int, *, early: bool) -> None:
        for _ in range(min(count, self._room())):
            driver = _Driver(self, *socket.socketpair())
            self._bells.add(driver.bell)
            self._free += 1
            threading.Thread(target=driver.run, args=(early,), name="line", daemon=True).start()

    def _room(self) -> int:
        """How many lines more there may be."""
        return min(LINES, self._most) - len(self._bells)

    # --- for the lines' threads ---

    def next(self, under_way: Sequence[_Request], bell: socket.socket, *, fresh: bool) -> _Request | None:
        """What to send now, waiting for it if nothing is under way. None: nothing that may follow, or the end of the
        line with this `bell`. A thread that is `fresh`, asks for the first time, has counted as free since it was
        begun."""
        with self._changed:
            self._free -= fresh
            while not self._closed:
                if not under_way and self._room() < 0:
                    self._bells.discard(bell)
                    self._changed.notify()  # if this one was told of what waits, others have to be
                    self._ring()
                    break
                if self._waiting and self._may_follow(self._waiting[0], under_way):
                    request = self._waiting.popleft()
                    self._ring()  # when this was asked before, it may have been left to us
                    return request
                if under_way:
                    break
                self._free += 1
                self._changed.wait()
                self._free -= 1
            return None

    def made(self) -> Line:
        line = Line(*self._where, self._on_connected)
        with self._changed:
            if self._closed:
                line.close()
                raise _closed()
            self._lines.add(line)
        return line

    def note(self, line: Line) -> None:
        """An answer has come."""
        received_bytes, seconds = line.receiving
        with self._changed:
            line.note(self.wire)
            if received_bytes >= RATE_SAMPLE_BYTES:
                rate, known = received_bytes / max(seconds, 1e-4), self.receive_rate
                self.receive_rate = rate if known is None else known + (rate - known) * RATE_WEIGHT

    def ended(self, line: Line | None, under_way: Iterable[_Request], error: BaseException | None) -> None:
        """A line is no more. What was under way goes on another one, where that may help."""
        with self._changed:
            if line is not None:
                line.note(self.wire)
                self._lines.discard(line)
            for request in reversed(list(under_way)):
                stale = line is not None and line.answered and isinstance(error, _CUT)
                if stale and request.repeats and not self._closed:
                    request.repeats -= 1  # the service closes lines that were idle for long, and repeating is harmless
                    self._waiting.appendleft(request)
                    self._tell()
                else:
                    request.fail(error or _closed())
        if line is not None:
            line.close()

    def _may_follow(self, request: _Request, under_way: Sequence[_Request]) -> bool:
        """Each end must read what the other one sends, or they would wait for one another."""
        if not under_way:
            return True
        if self._free or len(under_way) >= EACH:
            return False
        return request.size_bytes <= SMALL_BYTES or all(before.brief for before in under_way)

    def _on_connected(self, seconds: float) -> None:
        with self._changed:
            self.far = seconds > FAR_SECONDS
            self._spread()

    def _spread(self) -> None:
        if self._much and self.far:
            self._start(LINES, early=True)


class _Driver:
    """A line, made anew when it was cut, and the requests on it. `bell` wakes it while it waits for an answer."""

    def __init__(self, pool: LinePool, bell: socket.socket, ear: socket.socket) -> None:
        self.bell = bell
        self._ear = ear
        self._pool = pool
        self._line: Line | None = None
        self._under_way: deque[_Request] = deque()
        self._silent_since = 0.0
        """When it last took a request or brought an answer: to be rung is no sign of the service."""
        bell.setblocking(False)

    def run(self, early: bool) -> None:
        """Until the pool is closed. `early`: before there is a request for it."""
        with self.bell, self._ear:
            if early:
                with contextlib.suppress(OSError):  # the next request will find out why
                    self._line = self._pool.made()
            fresh = True
            while (request := self._pool.next(self._under_way, self.bell, fresh=fresh)) or self._under_way:
                fresh = False
                if request:
                    self._under_way.append(request)
                try:
                    self._line = self._line or self._pool.made()
                    if request:
                        self._send(self._line, request)
                    else:
                        self._hear(self._line)
                except BaseException as error:  # theirs to handle, whose requests are under way
                    self._end(error)
            self._end(None)

    def _send(self, line: Line, request: _Request) -> None:
        taker = request.path.rpartition("/")[0]
        body = iter(request.body) if self._pool.pace is None else self._pool.pace.parts(request.body, taker)
        line.send(request.method, request.path, body, request.headers, request.silence_seconds)
        self._silent_since = time.monotonic()

    def _hear(self, line: Line) -> None:
        """The next answer; or nothing, if there is something to send before it comes."""
        first = self._under_way[0]
        if line.wait(self._ear, first.silence_seconds, self._silent_since):
            answer = line.receive(first.method, first.silence_seconds)
            self._silent_since = time.monotonic()
            self._under_way.popleft()
            self._pool.note(line)
            first.answer(answer)
            if not line.usable:
                raise ConnectionResetError("the service closed the line")

    def _end(self, error: BaseException | None) -> None:
        self._pool.ended(self._line, self._under_way, error)
        self._line = None
        self._under_way.clear()


def _closed() -> OSError:
    return ConnectionAbortedError("the lines are closed")
