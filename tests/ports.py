"""Ports for what a test starts itself."""

from __future__ import annotations

import contextlib
import random
import socket
from pathlib import Path

_SMALLEST = 10_000
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_reserved: list[int] = []
"""File descriptors that end with this process."""


def free_port() -> int:
    """A port of 127.0.0.1 that stays the caller's for as long as this process lives, also while nobody listens on it.

    It lies below those that the kernel takes for the near end of connections: while a service is down, one of these
    could get its port, and a connection to it may even meet itself."""
    below = int(_RANGE.read_text().split()[0]) if _RANGE.exists() else 32_768
    while True:
        port = random.SystemRandom().randrange(_SMALLEST, max(below, _SMALLEST + 1000))
        with socket.socket(socket.AF_UNIX) as claim, socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            claim.bind(f"\0understudy-test-port-{port}")  # other processes that run tests ask for the same name
            _reserved.append(claim.detach())
            return port
