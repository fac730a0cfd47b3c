"""A socket that counts what passes, so that `sent_bytes` is what the wire saw and not what we think we sent."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class WireCount:
    """Bytes both ways over all connections, TLS included."""

    sent_bytes: int = 0
    received_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        return self.sent_bytes + self.received_bytes


class CountingSocket(socket.socket):
    """A TCP socket that adds what it sends and receives to a WireCount."""

    count: WireCount

    def send(self, data: Any, flags: int = 0) -> int:
        sent = super().send(data, flags)
        self.count.sent_bytes += sent
        return sent

    def sendmsg(self, buffers: Any, *rest: Any) -> int:
        sent = super().sendmsg(buffers, *rest)
        self.count.sent_bytes += sent
        return sent

    def recv(self, size: int, flags: int = 0) -> bytes:
        data = super().recv(size, flags)
        self.count.received_bytes += len(data)
        return data

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        received = super().recv_into(buffer, nbytes, flags)
        self.count.received_bytes += received
        return received


def counting_socket_factory(count: WireCount) -> Callable[[Any], socket.socket]:
    """A `socket_factory` for aiohttp's connector."""

    def make(address: Any) -> socket.socket:
        family, kind, protocol, _, _ = address
        made = CountingSocket(family, kind, protocol)
        made.count = count
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made

    return make
