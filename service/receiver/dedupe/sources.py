"""Sources: the newest points of a tenant's servers, open for reading while blocks are being copied from them.

Nobody waits for us, and we wait for nobody for long: a volume is opened by a thread of our own, since its site may be
busy with it for minutes; none is opened while its server's lock is held; and who holds that lock can have ours closed.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

from agent.protocol.errors import NotFound, StorageError, VolumeBusy
from agent.protocol.grid import BlockGrid
from agent.protocol.messages import Point
from recovery.sites.contract import VolumeIO
from service.receiver.manifest import Manifest
from service.receiver.points import PointArchive

OPEN_PATIENCE_SECONDS = 2.0
"""How long the first copies from a volume wait for it to be opened; until it is, its blocks are sent."""
IDLE_SECONDS = 3.0
"""What nobody has read from for so long is closed, and what failed so long ago is tried again."""
MAX_OPEN = 8
CLOSE_PATIENCE_SECONDS = 10.0


class Points(Protocol):
    def newest_first(self, server_id: str) -> list[Point]: ...


@dataclass(frozen=True, slots=True)
class Source:
    """A volume of a point, open for reading."""

    grid: BlockGrid
    io: VolumeIO

    def read_into(self, blocks: range, into: memoryview) -> None:
        """`into` is as long as these consecutive blocks are."""
        self.io.read_into(self.grid.offset(blocks.start), into)


@dataclass(frozen=True, slots=True)
class _Key:
    tenant: str
    server_id: str
    volume: int


@dataclass(eq=False)
class _Entry:
    opening: Future[Source]
    users: int = 0
    begun_at: float = field(default_factory=time.monotonic)
    used_at: float = field(default_factory=time.monotonic)
    broken: bool = False

    def close(self) -> None:
        """Now, or as soon as it has been opened."""
        self.opening.add_done_callback(lambda done: None if done.exception() else done.result().io.close())


class Sources:
    """`is_busy` says of a server that its volumes are to be left alone now."""

    def __init__(self, archive: PointArchive, points: Points, is_busy: Callable[[str], bool]) -> None:
        self._archive = archive
        self._points = points
        self._is_busy = is_busy
        self._changed = threading.Condition()
        self._entries: dict[_Key, _Entry] = {}
        self._retired: dict[_Entry, _Key] = {}
        """Given to nobody any more; whoever uses one last closes it."""
        self._threads = ThreadPoolExecutor(4, "dedupe")

    @contextlib.contextmanager
    def reading(self, tenant: str, server_id: str, volume: int) -> Iterator[Source]:
        """A volume as of its server's newest point, kept open for others for a short while.

        Raises NotFound if there is none, also if it is another tenant's; VolumeBusy if it cannot be opened soon;
        what the site raises."""
        key = _Key(tenant, server_id, volume)
        with self._changed:
            entry = self._entry(key)
            entry.users += 1
        try:
            waited_seconds = time.monotonic() - entry.begun_at
            try:
                source = entry.opening.result(max(0.0, OPEN_PATIENCE_SECONDS - waited_seconds))
            except TimeoutError:
                raise VolumeBusy(f"volume {volume} of {server_id} takes long to open") from None
            yield source
            entry.used_at = time.monotonic()
        except StorageError:
            entry.broken = True  # until it is idle, and closed; then it is tried again
            raise
        finally:
            with self._changed:
                entry.users -= 1
                last = not entry.users and entry in self._retired
            if last:
                self._dispose(entry)

    def newest(self, server_id: str) -> Manifest:
        """The manifest of a server's newest point. Raises NotFound, StorageError."""
        points = self._points.newest_first(server_id)
        if not points:
            raise NotFound(f"{server_id} has no recovery point")
        return self._archive.manifest(server_id, points[0].id)

    def retire(self, server_id: str) -> None:
        """What is open of this server is not its newest point any more."""
        self._retire(lambda key, _: key.server_id == server_id)

    def release(self, server_id: str) -> None:
        """For whoever holds the server's lock: when this returns nothing of the server is open here, unless a copy that
        is under way takes longer than any should."""
        self.retire(server_id)
        with self._changed:
            self._changed.wait_for(
                lambda: all(key.server_id != server_id for key in self._retired.values()), CLOSE_PATIENCE_SECONDS
            )

    def close_idle(self) -> None:
        now = time.monotonic()
        self._retire(lambda _, entry: entry.opening.done() and now - entry.used_at >= IDLE_SECONDS)

    def close(self) -> None:
        """Nobody may be reading any more."""
        self._retire(lambda key, entry: True)
        self._threads.shutdown()

    def _entry(self, key: _Key) -> _Entry:
        entry = self._entries.get(key)
        if entry is None:
            if self._is_busy(key.server_id):
                raise VolumeBusy(f"the replica of {key.server_id} is busy")
            if len(self._entries) >= MAX_OPEN:
                raise VolumeBusy(f"{MAX_OPEN} other volumes are being copied from")
            entry = self._entries[key] = _Entry(self._threads.submit(self._open, key))
        if entry.broken:
            raise VolumeBusy(f"volume {key.volume} of {key.server_id} could not be read a moment ago")
        return entry

    def _open(self, key: _Key) -> Source:
        manifest = self.newest(key.server_id)
        if manifest.tenant != key.tenant or not key.volume < len(manifest.point.volumes):
            raise NotFound(f"{key.tenant} has no volume {key.volume} of {key.server_id}")
        volume = manifest.volume(key.volume)
        grid = BlockGrid(volume.size_bytes, volume.block_bytes)
        return Source(grid, self._archive.open(manifest, key.volume))

    def _retire(self, which: Callable[[_Key, _Entry], bool]) -> None:
        with self._changed:
            leaving = {entry: key for key, entry in self._entries.items() if which(key, entry)}
            self._retired.update(leaving)
            for key in leaving.values():
                del self._entries[key]
            unused = [entry for entry in leaving if not entry.users]
        for entry in unused:
            self._dispose(entry)

    def _dispose(self, entry: _Entry) -> None:
        entry.close()
        with self._changed:
            del self._retired[entry]
            self._changed.notify_all()
