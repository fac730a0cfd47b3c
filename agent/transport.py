"""A line to the service: HTTP/1.1 over TLS on blocking sockets, driven by threads.

Reading, hashing and packing run in threads anyway; so does this, with the standard library alone: the agent stays
light, and a push that finds nothing to send is not mostly the import of an HTTP library.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import select
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from agent.protocol.congestion import prefer_bbr

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
    """One connection, made at once. Requests may follow one another before the first is answered; answers come in the
    same order. For one thread, but for `cut`. Raises OSError (ssl.SSLError too) and HTTPException."""

    def __init__(
        self,
        host: str,
        port: int,
        context: ssl.SSLContext,
        server_hostname: str | None,
        on_connected: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        """`on_connected` hears how many seconds the service took to answer, before TLS begins."""
        self.answered = False
        """An answer has come on this line: if it is cut now, it may only have been idle for too long."""
        self.usable = True
        """It can take another request: the service has not said that it closes it."""
        self.receiving = (0, 0.0)
        """How many bytes the last answer had, and how many seconds they took to come in once they came."""
        self.delivery_rate = 0
        """Bytes a second that the network took of what was last sent, as TCP measures it; 0: not known."""
        self._where = host, port
        self._sent_bytes = self._received_bytes = 0
        self._noted = (0, 0)
        began = time.monotonic()
        raw = socket.create_connection((host, port), CONNECT_SECONDS)
        try:
            on_connected(time.monotonic() - began)
            _tune(raw)
            self._socket = context.wrap_socket(raw, server_hostname=server_hostname or host)
        except BaseException:
            raw.close()
            raise
        self._answers = _Answers(socket.SocketIO(self._socket, "rb"))

    def send(
        self, method: str, path: str, body: Iterable[Buffer], headers: Mapping[str, str], silence_seconds: float
    ) -> None:
        """Send a request. `headers` have the length of `body`. Raises TimeoutError when the service takes nothing for
        so long."""
        self._socket.settimeout(silence_seconds)
        request = http.client.HTTPConnection(*self._where)  # one would not begin a request before the last is answered
        request.sock = self._socket
        request.request(method, path, body, headers)
        self._sent_bytes += int(headers["Content-Length"])

    def wait(self, bell: socket.socket, silence_seconds: float, since: float) -> bool:
        """Until the next answer begins; False: until `bell` rang. Raises TimeoutError when so long has passed `since`
        then, by the monotonic clock."""
        self._socket.settimeout(0)
        until = since + silence_seconds
        while True:
            with contextlib.suppress(ssl.SSLWantReadError):
                self._answers.peek(1)
                return True
            ready, _, _ = select.select([self._socket, bell], [], [], max(0.0, until - time.monotonic()))
            if bell in ready:
                bell.recv(1 << 10)
                return False
            if not ready:
                raise TimeoutError(f"no answer within {silence_seconds:.0f} s")

    def receive(self, method: str, silence_seconds: float) -> tuple[int, bytes]:
        """The next answer: its status and its body. Raises TimeoutError after so long without a sign of the service."""
        self._socket.settimeout(silence_seconds)
        answer = http.client.HTTPResponse(self._answers, method=method)  # type: ignore[arg-type]  # it is but read from
        answer.begin()
        began = time.monotonic()
        content = answer.read()
        self.receiving = len(content), time.monotonic() - began
        self._received_bytes += len(content)
        self.answered = True
        self.usable = not answer.will_close
        return answer.status, content

    def note(self, count: WireCount) -> None:
        """Add to `count` what passed since the last call."""
        sent, received = self._passed()
        count.sent_bytes += sent - self._noted[0]
        count.received_bytes += received - self._noted[1]
        self._noted = sent, received

    def cut(self) -> None:
        """For any thread: the one that waits for an answer gets an OSError."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)  # SSLSocket's own takes TLS away under who reads

    def close(self) -> None:
        self._answers.end()
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


class _Answers(io.BufferedReader):
    """What comes on a line, read on from one answer to the next. http.client takes it for a socket, and closes what it
    has read to the end."""

    def makefile(self, mode: str) -> _Answers:
        return self

    def close(self) -> None:
        pass

    def end(self) -> None:
        super().close()


def _tune(raw: socket.socket) -> None:
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _LIVENESS.items():
        option = getattr(socket, name, None)
        if option is not None:
            raw.setsockopt(socket.IPPROTO_TCP, option, value)
    prefer_bbr(raw)
