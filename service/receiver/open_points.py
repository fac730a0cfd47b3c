"""Points that are being read stay open between requests: each has a digest map to load, and files to open."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from agent.protocol.digests import DigestMap
from recovery.sites.contract import VolumeIO
from service.receiver.manifest import Manifest
from service.receiver.points import PointArchive

IDLE_SECONDS = 30.0
MAX_OPEN = 8


@dataclass
class _Volume:
    """A volume of a point; opened by who needs it first, while the others wait."""

    opening: threading.Lock = field(default_factory=threading.Lock)
    opened: tuple[DigestMap, VolumeIO] | None = None
    users: int = 0
    used_at: float = field(default_factory=time.monotonic)

    def close(self) -> None:
        if self.opened is not None:
            digests, io = self.opened
            self.opened = None
            io.close()
            digests.close()


class OpenPoints:
    """For many threads. Call `close_idle` now and then. Raises what PointArchive raises."""

    def __init__(self, archive: PointArchive) -> None:
        self._archive = archive
        self._lock = threading.Lock()
        self._volumes: OrderedDict[tuple[str, int], _Volume] = OrderedDict()

    @contextlib.contextmanager
    def volume(self, manifest: Manifest, index: int) -> Iterator[tuple[DigestMap, VolumeIO]]:
        key = (manifest.point.id, index)
        with self._lock:
            volume = self._volumes.setdefault(key, _Volume())
            volume.users += 1
            self._volumes.move_to_end(key)
            surplus = self._surplus(MAX_OPEN, 0.0)
        _close(surplus)
        try:
            with volume.opening:
                if volume.opened is None:
                    volume.opened = self._archive.digests(manifest, index), self._archive.open(manifest, index)
                opened = volume.opened
            yield opened
        finally:
            with self._lock:
                volume.users -= 1
                volume.used_at = time.monotonic()

    def close_idle(self) -> None:
        """Close what nobody has read from for long, so that retention can merge the chain."""
        with self._lock:
            surplus = self._surplus(0, IDLE_SECONDS)
        _close(surplus)

    def close(self) -> None:
        with self._lock:
            surplus = self._surplus(0, 0.0)
        _close(surplus)

    def _surplus(self, most: int, idle_seconds: float) -> list[_Volume]:
        """Take out what nobody uses, the longest unused first, until `most` are left."""
        now = time.monotonic()
        taken: list[_Volume] = []
        for key, volume in list(self._volumes.items()):
            if len(self._volumes) <= most:
                break
            if not volume.users and now - volume.used_at >= idle_seconds:
                taken.append(self._volumes.pop(key))
        return taken


def _close(volumes: list[_Volume]) -> None:
    for volume in volumes:
        volume.close()
