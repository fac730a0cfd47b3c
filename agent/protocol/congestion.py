"""How fast TCP sends: by what the line delivers (BBR), where the system can do that."""

from __future__ import annotations

import contextlib
import socket

_BBR = b"bbr"


def prefer_bbr(connection: socket.socket) -> None:
    """Cubic, which most systems begin with, takes each lost packet for a line that is full, and is slow to find out how
    much a long one takes. For a listening socket: what it accepts inherits it."""
    if hasattr(socket, "TCP_CONGESTION"):
        with contextlib.suppress(OSError):  # this system does not have it, or not for us
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, _BBR)
