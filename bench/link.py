"""A long line between two network namespaces: so many bits a second, so much delay, some loss, connections cut.

Two TUN devices, one in each namespace, and a process in between that passes packets on when their time has come. So it
is the kernel's own TCP on both ends that meets the delay and the loss. Needs root and /dev/net/tun.
"""

from __future__ import annotations

import collections
import contextlib
import fcntl
import multiprocessing
import os
import random
import select
import struct
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from bench.measure import BenchError

NEAR, FAR = "10.213.7.1", "10.213.7.2"
"""The service's end and the agent's."""
QUEUE_SECONDS = 0.08
"""How much a router in between would hold; what does not fit is dropped."""
_TUNSETIFF, _IFF_TUN_NO_PI = 0x400454CA, 0x1001
_PACKET_BYTES = 1 << 16
_TCP, _RST, _ACK = 6, 0x04, 0x10


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """`delay_seconds` is each way. Of the packets, `loss` is dropped; every `cut_seconds` all connections are reset."""

    bits_a_second: float
    delay_seconds: float = 0.04
    loss: float = 0.0
    cut_seconds: float | None = None


class Link:
    """A context manager. `near` and `far` are prefixes for commands at either end."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._names = [f"us-{os.getpid()}-{end}" for end in ("near", "far")]
        self.near, self.far = (("ip", "netns", "exec", name) for name in self._names)
        self._resources = contextlib.ExitStack()

    def __enter__(self) -> Link:
        if os.geteuid() != 0 or not os.path.exists("/dev/net/tun"):
            raise BenchError("a line needs root and /dev/net/tun")
        _remove_left_behind()
        with self._resources:
            ends = [self._end(name, address) for name, address in zip(self._names, (NEAR, FAR), strict=True)]
            context = multiprocessing.get_context("fork")
            passing = context.Process(target=_Passing(self._line, ends[0], ends[1]).run, daemon=True)
            passing.start()
            self._resources.callback(passing.join)
            self._resources.callback(passing.kill)
            self._resources = self._resources.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    def _end(self, namespace: str, address: str) -> int:
        device = f"us{os.getpid() % 100_000}{address[-1]}"
        _ip("netns", "add", namespace)
        self._resources.callback(_ip, "netns", "del", namespace)
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        self._resources.callback(os.close, descriptor)
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH", device.encode(), _IFF_TUN_NO_PI))
        _ip("link", "set", device, "netns", namespace)
        _ip("-n", namespace, "addr", "add", f"{address}/24", "dev", device)
        _ip("-n", namespace, "link", "set", device, "up", "txqueuelen", "1000")
        _ip("-n", namespace, "link", "set", "lo", "up")
        return descriptor


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def _remove_left_behind() -> None:
    """Namespaces of benches that were killed."""
    for namespace in Path("/run/netns").glob("us-*-*"):
        if not Path("/proc", namespace.name.split("-")[1]).exists():
            _ip("netns", "del", namespace.name)


class _Way:
    """One direction."""

    def __init__(self, source: int, sink: int) -> None:
        self.source, self.sink = source, sink
        self.free_at = 0.0
        self.waiting: collections.deque[tuple[float, bytes]] = collections.deque()


class _Passing:
    """The process in between."""

    def __init__(self, line: Line, near: int, far: int) -> None:
        self._line = line
        self._rng = random.Random(1)
        self._ways = {near: _Way(near, far), far: _Way(far, near)}
        self._acked: dict[tuple[bytes, bytes], bytes] = {}
        """By (addresses, ports) of a direction: what its receiver last acknowledged, so what it takes next."""

    def run(self) -> None:
        with contextlib.suppress(OSError):  # not every root may
            os.setpriority(os.PRIO_PROCESS, 0, -20)  # a line does not slow down because its ends are busy
        cut_at = time.monotonic() + self._line.cut_seconds if self._line.cut_seconds else float("inf")
        while True:
            now = time.monotonic()
            due = min((way.waiting[0][0] for way in self._ways.values() if way.waiting), default=now + 0.1)
            ready, _, _ = select.select(list(self._ways), [], [], max(0.0, min(due, cut_at) - now))
            for descriptor in ready:
                self._take(self._ways[descriptor])
            now = time.monotonic()
            for way in self._ways.values():
                while way.waiting and way.waiting[0][0] <= now:
                    with contextlib.suppress(OSError):  # an interface that is full drops, as a router does
                        os.write(way.sink, way.waiting.popleft()[1])
            if now >= cut_at and self._line.cut_seconds:
                cut_at = now + self._line.cut_seconds
                self._cut()

    def _take(self, way: _Way) -> None:
        line = self._line
        for _ in range(64):
            try:
                packet = os.read(way.source, _PACKET_BYTES)
            except BlockingIOError:
                return
            if line.cut_seconds and packet[0] == 0x45 and packet[9] == _TCP:
                self._acked[packet[16:20] + packet[12:16], packet[22:24] + packet[20:22]] = packet[28:32]
            if line.loss and self._rng.random() < line.loss:
                continue
            now = time.monotonic()
            begins = max(now, way.free_at)
            if begins - now > QUEUE_SECONDS:
                continue
            way.free_at = begins + len(packet) * 8 / line.bits_a_second
            way.waiting.append((way.free_at + line.delay_seconds, packet))

    def _cut(self) -> None:
        """Reset every connection at both ends, as a firewall that restarts does."""
        for (addresses, ports), sequence in self._acked.items():
            head = ports + sequence + bytes(4) + bytes([0x50, _RST]) + bytes(6)
            checked = addresses + bytes([0, _TCP]) + struct.pack(">H", len(head)) + head
            head = head[:16] + _checksum(checked) + head[18:]
            ip = bytes([0x45, 0]) + struct.pack(">H", 20 + len(head)) + bytes(4) + bytes([64, _TCP, 0, 0]) + addresses
            ip = ip[:10] + _checksum(ip) + ip[12:]
            for way in self._ways.values():  # the end that is not meant drops it
                with contextlib.suppress(OSError):
                    os.write(way.sink, ip + head)
        self._acked.clear()


def _checksum(data: bytes) -> bytes:
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack(">H", ~total & 0xFFFF)
