"""Lines to the service: HTTP/1.1 over TLS on blocking sockets, driven by threads.

Reading, hashing and packing run in threads anyway; so does this, with the standard library alone: the agent stays
light, and a push that finds nothing to send is not mostly the import of an HTTP library.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from agent.pacing.pace import Pace

CONNECT_SECONDS = 15.0
ANSWER_SECONDS = 120.0
"""The longest silence of a service that is there: a commit of many volumes takes its time."""
BLOCKS_SECONDS = 45.0
"""The same for blocks, which are a second's worth: a line that some box in between keeps up for nobody is given up."""
_LIVENESS = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 30_000}
"""A peer that is gone without a word (a router restarted, a cable pulled) is noticed within 30 s, also while it is
waited for; where the system knows these."""

# struct tcp_info of linux/tcp.h, all u64: bytes_received at 128, delivery_rate at 160, bytes_sent at 200,
# bytes_retrans at 208 (Linux 4.19)
_TCP_INFO_BYTES = 216

RATE_SAMPLE_BYTES = 256 << 10
RATE_WEIGHT = 0.2

_CUT = (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError)

Buffer = bytes | bytearray | memoryview


@dataclass(slots=True)
class WireCount:
    """Bytes both ways over all connections, TLS included; what the network had to carry twice is not."""

    sent_bytes: int = 0
    received_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        return self.sent_bytes + self.received_bytes


class Line:
    """One connection, made at once; one request at a time. Raises OSError (ssl.SSLError too) and HTTPException."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext, server_hostname: str | None) -> None:
        self.answered = False
        """An answer has come on this line: if it is cut now, it may only have been idle for too long."""
        self.receiving = (0, 0.0)
        """How many bytes the last answer had, and how many seconds they took to come in once they came."""
        self.delivery_rate = 0
        """Bytes a second that the network took of what was last sent, as TCP measures it; 0: not known."""
        self._sent_bytes = self._received_bytes = 0
        self._noted = (0, 0)
        raw = socket.create_connection((host, port), CONNECT_SECONDS)
        try:
            _tune(raw)
            self._socket = context.wrap_socket(raw, server_hostname=server_hostname or host)
        except BaseException:
            raw.close()
            raise
        self._http = http.client.HTTPConnection(host, port)
        self._http.sock = self._socket

    def request(
        self, method: str, path: str, body: Iterable[Buffer], headers: Mapping[str, str], silence_seconds: float
    ) -> tuple[int, bytes]:
        """Send a request and wait for the answer: its status and its body. `headers` have the length of `body`. Raises
        TimeoutError after so long without a sign of the service."""
        self._socket.settimeout(silence_seconds)
        self._http.request(method, path, body, headers)
        self._sent_bytes += int(headers["Content-Length"])
        with self._http.getresponse() as answer:
            began = time.monotonic()
            content = answer.read()
            self.receiving = len(content), time.monotonic() - began
            self._received_bytes += len(content)
            self.answered = True
            return answer.status, content

    @property
    def usable(self) -> bool:
        """It can take another request: the service has not said that it closes it."""
        return self._http.sock is not None

    def note(self, count: WireCount) -> None:
        """Add to `count` what passed since the last call."""
        sent, received = self._passed()
        count.sent_bytes += sent - self._noted[0]
        count.received_bytes += received - self._noted[1]
        self._noted = sent, received

    def close(self) -> None:
        """End it. A thread that waits for an answer on it gets an OSError."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._http.close()
        self._socket.close()

    def _passed(self) -> tuple[int, int]:
        """Bytes sent and received as the kernel counted them; elsewhere than on Linux, those of the bodies."""
        with contextlib.suppress(OSError, AttributeError, struct.error):
            info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
            (received,) = struct.unpack_from("Q", info, 128)
            (self.delivery_rate,) = struct.unpack_from("Q", info, 160)
            sent, repeated = struct.unpack_from("QQ", info, 200)
            self._sent_bytes, self._received_bytes = sent - repeated, received
        return self._sent_bytes, self._received_bytes


class LinePool:
    """Lines that wait for their next request. For many threads."""

    def __init__(
        self, host: str, port: int, context: ssl.SSLContext, server_hostname: str | None, pace: Pace | None = None
    ) -> None:
        """`pace` lets bodies go in slices, each when it may; volumes have a share each."""
        self.wire = WireCount()
        self._pace = pace
        self.receive_rate: float | None = None
        """Bytes a second that one line brings while it brings something, lately; None until that is known."""
        self._where = (host, port, context, server_hostname)
        self._lock = threading.Lock()
        self._idle: list[Line] = []
        self._busy: set[Line] = set()
        self._closed = False
        self._delivery: dict[Line, int] = {}

    @property
    def network_rate(self) -> float | None:
        """Bytes a second that the network takes over all lines, lately; None until that is known."""
        with self._lock:
            return float(sum(self._delivery.values())) or None

    def request(
        self,
        method: str,
        path: str,
        body: Sequence[Buffer],
        headers: Mapping[str, str],
        silence_seconds: float = ANSWER_SECONDS,
    ) -> tuple[int, bytes]:
        """One request on a line of its own. Raises as Line does."""
        length = str(sum(map(len, body)))
        while True:
            line = self._take()
            may_be_stale = line.answered
            try:
                paced = iter(body) if self._pace is None else self._pace.parts(body, path.rpartition("/")[0])
                answer = line.request(method, path, paced, {**headers, "Content-Length": length}, silence_seconds)
            except BaseException as error:
                self._give_back(line, usable=False)
                if may_be_stale and isinstance(error, _CUT) and not self._closed:
                    continue  # the service closes lines that were idle for long; repeating a request is harmless
                raise
            self._measure(*line.receiving)
            self._give_back(line, usable=line.usable)
            return answer

    def close(self) -> None:
        """End all lines; threads that wait for an answer get an OSError."""
        with self._lock:
            self._closed = True
            lines = [*self._idle, *self._busy]
            self._idle.clear()
        for line in lines:
            line.close()

    def _measure(self, received_bytes: int, seconds: float) -> None:
        if received_bytes < RATE_SAMPLE_BYTES:
            return
        rate = received_bytes / max(seconds, 1e-4)
        with self._lock:
            known = self.receive_rate
            self.receive_rate = rate if known is None else known + (rate - known) * RATE_WEIGHT

    def _take(self) -> Line:
        with self._lock:
            if self._idle:
                line = self._idle.pop()
                self._busy.add(line)
                return line
        line = Line(*self._where)
        with self._lock:
            self._busy.add(line)
            closed = self._closed
        if closed:
            line.close()
        return line

    def _give_back(self, line: Line, *, usable: bool) -> None:
        with self._lock:
            self._busy.discard(line)
            line.note(self.wire)
            if line.delivery_rate:
                self._delivery[line] = line.delivery_rate
            if not usable:
                self._delivery.pop(line, None)
            keep = usable and not self._closed
            if keep:
                self._idle.append(line)
        if not keep:
            line.close()


def _tune(raw: socket.socket) -> None:
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _LIVENESS.items():
        option = getattr(socket, name, None)
        if option is not None:
            raw.setsockopt(socket.IPPROTO_TCP, option, value)
