"""Replica volumes: who may do what to which chain, and when."""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from agent.protocol.errors import Conflict, NotFound, SiteError, StorageError
from recovery.sites.contract import Extent, VolumeIO, VolumeKey
from recovery.sites.local import qcow2
from recovery.sites.local.chain import Chain
from recovery.sites.local.durable import check_name, make_folder, storage_errors, sync_folder
from recovery.sites.local.layer_io import LayerIO
from recovery.sites.local.reshape import resize
from recovery.sites.local.snapshot_io import SnapshotIO

_log = logging.getLogger(__name__)
IO = TypeVar("IO", bound=VolumeIO)

_FOLDER = re.compile(r"volume-(\d+)")

PointsInUse = Callable[[VolumeKey], set[str]]
"""The points of a volume that instances were launched from."""


class _Guard:
    """What goes on with one volume: one change at a time, and who has it open."""

    def __init__(self) -> None:
        self.changing = threading.Lock()
        self.renaming = threading.Lock()
        self.readers = 0
        self.writer = False


class Volumes:
    """See the Site contract. Chains below `root`: <server>/volume-<n>/."""

    def __init__(self, root: Path, points_in_use: PointsInUse) -> None:
        self._root = root
        self._points_in_use = points_in_use
        self._guards: dict[VolumeKey, _Guard] = {}
        self._guards_lock = threading.Lock()
        self._open: set[VolumeIO] = set()

    def make(self, key: VolumeKey, size_bytes: int) -> None:
        if size_bytes <= 0:
            raise SiteError(f"a volume of {size_bytes} bytes cannot be made")
        # qcow2 counts in sectors; an image file of another length gets zeros at its end
        size_bytes += -size_bytes % qcow2.SECTOR_BYTES
        chain = self.chain(key)
        with self._change(key), storage_errors(f"make volume {key.index} of {key.server_id}"):
            make_folder(chain.folder)
            if chain.head.exists():
                damage = chain.damage_of_head()
                if damage is None:
                    resize(chain.head, size_bytes)
                    return
                # only what a push brought that made no point of it: the next one brings it again
                _log.warning(
                    "the working state of volume %d of %s is thrown away: %s", key.index, key.server_id, damage
                )
                chain.drop_head()
            chain.drop_unfinished_tip()
            points = chain.points()
            qcow2.create(chain.head, size_bytes, chain.point(points[-1]).name if points else None)

    def open(self, key: VolumeKey) -> LayerIO:
        with self._change(key):
            head = self._existing_head(key)
            return self._opened(key, lambda closed: LayerIO(head, on_close=closed), writable=True)

    def open_snapshot(self, key: VolumeKey, point_id: str) -> SnapshotIO:
        with self._guard(key).changing:
            path = self.chain(key).existing_point(point_id)
            layers = qcow2.layers(path)
            size_bytes = qcow2.read_header(path).size_bytes
            return self._opened(key, lambda closed: SnapshotIO(layers, size_bytes, on_close=closed), writable=False)

    def exists(self, key: VolumeKey) -> bool:
        return self.chain(key).head.exists()

    def changes(self, key: VolumeKey) -> list[Extent]:
        chain = self.chain(key)
        with self._change(key):
            size_bytes = qcow2.read_header(self._existing_head(key)).size_bytes
            points = chain.points()
            newest = points[-1] if points else None
            found = [extent for layer in chain.layers_above(newest) for extent in qcow2.allocated(layer)]
            if newest is not None:
                point_bytes = qcow2.read_header(chain.point(newest)).size_bytes
                found.append(Extent(point_bytes, max(0, size_bytes - point_bytes)))
        return clipped(found, size_bytes)

    def revert(self, key: VolumeKey) -> None:
        chain = self.chain(key)
        with self._change(key), storage_errors(f"revert volume {key.index} of {key.server_id}"):
            if chain.head.exists():
                chain.drop_head()

    def snapshot(self, key: VolumeKey, point_id: str) -> None:
        with self._change(key):
            self.chain(key).snapshot(point_id)

    def snapshot_data(self, key: VolumeKey, point_id: str, within: Extent) -> list[Extent]:
        with self._guard(key).changing:
            return qcow2.data(self.chain(key).existing_point(point_id), within)

    def snapshot_complaints(self, key: VolumeKey, point_id: str) -> list[str]:
        with self._guard(key).changing:
            return qcow2.complaints(self.chain(key).existing_point(point_id))

    def repair_snapshot(self, key: VolumeKey, point_id: str, parts: Iterable[tuple[int, bytes]]) -> None:
        """Where the file's own structures are damaged, a write to one block could land in another's place."""
        with self._change(key, readers_too=True):
            path = self.chain(key).existing_point(point_id)
            wrong = qcow2.complaints(path)
            if wrong:
                raise StorageError(
                    f"block by block nothing can be healed in {wrong[0]}", "restore the file from a copy"
                )
            with storage_errors(f"heal {path}"):
                path.chmod(0o644)
                try:
                    with contextlib.closing(LayerIO(path)) as io:
                        for offset, data in parts:
                            io.write(offset, data)
                        io.flush()
                finally:
                    path.chmod(0o444)

    def snapshots(self, key: VolumeKey) -> list[str]:
        return self.chain(key).points()

    def check_unused(self, key: VolumeKey, point_id: str) -> None:
        with self._change(key, readers_too=True):
            self._refuse_used(key, point_id)
            self.chain(key).check_mergeable(point_id)

    def delete_snapshot(self, key: VolumeKey, point_id: str) -> None:
        with self._change(key, readers_too=True):
            self._refuse_used(key, point_id)
            self.chain(key).delete(point_id)

    def delete(self, key: VolumeKey) -> None:
        folder = self.chain(key).folder
        with self._change(key, readers_too=True), storage_errors(f"delete volume {key.index} of {key.server_id}"):
            if self._points_in_use(key):
                raise Conflict(f"volume {key.index} of {key.server_id} is in use by an instance", "end it first")
            if folder.exists():
                # renamed first: a volume is there whole, or not at all
                gone = folder.with_name(f".{folder.name}.gone")
                shutil.rmtree(gone, ignore_errors=True)
                folder.rename(gone)
                sync_folder(folder.parent)
                shutil.rmtree(gone)
            with contextlib.suppress(OSError):  # other volumes, or documents
                folder.parent.rmdir()

    def existing_point(self, key: VolumeKey, point_id: str) -> Path:
        """The file of a snapshot. Raises NotFound."""
        return self.chain(key).existing_point(point_id)

    def keys(self) -> list[VolumeKey]:
        with storage_errors("list the volumes"):
            folders = [path for path in self._root.glob("*/volume-*") if _FOLDER.fullmatch(path.name)]
            return sorted(
                VolumeKey(path.parent.name, int(path.name.removeprefix("volume-")))
                for path in folders
                if any(path.iterdir())
            )

    def complete_deletions(self) -> None:
        """What a crash cut off. A failure is logged, not raised: the points left are whole all the same."""
        for gone in self._root.glob("*/.volume-*.gone"):
            shutil.rmtree(gone, ignore_errors=True)
        for key in self.keys():
            for point_id in self.chain(key).unfinished():
                try:
                    self.delete_snapshot(key, point_id)
                except (Conflict, SiteError, StorageError) as error:
                    _log.warning("deletion of recovery point %s stays unfinished: %s", point_id, error)

    @contextlib.contextmanager
    def unchanged(self, keys: Iterable[VolumeKey]) -> Iterator[None]:
        """No point of these volumes is deleted meanwhile; a deletion under way is waited for."""
        with contextlib.ExitStack() as stack:
            for key in sorted(set(keys)):
                stack.enter_context(self._guard(key).changing)
            yield

    def close(self) -> None:
        """Close what callers left open."""
        for io in list(self._open):
            io.close()

    def chain(self, key: VolumeKey) -> Chain:
        if key.index < 0:
            raise SiteError(f"{key.index} is no place of a volume in a boot order")
        return Chain(
            self._root / check_name(key.server_id, "a server") / f"volume-{key.index}", self._guard(key).renaming
        )

    def _refuse_used(self, key: VolumeKey, point_id: str) -> None:
        """An instance's volume needs the files of the point that it was launched from, and of all older ones."""
        for launched in sorted(self._points_in_use(key)):
            if point_id in self.chain(key).below(launched):
                raise Conflict(
                    f"recovery point {point_id} is in use: an instance runs from {launched}", "end the instance first"
                )

    def _existing_head(self, key: VolumeKey) -> Path:
        head = self.chain(key).head
        if not head.exists():
            raise NotFound(f"volume {key.index} of {key.server_id} has no working state")
        return head

    def _guard(self, key: VolumeKey) -> _Guard:
        with self._guards_lock:
            return self._guards.setdefault(key, _Guard())

    @contextlib.contextmanager
    def _change(self, key: VolumeKey, *, readers_too: bool = False) -> Iterator[None]:
        """Alone with a volume that nobody has open. `readers_too`: neither may a snapshot be open."""
        guard = self._guard(key)
        with guard.changing:
            if guard.writer:
                raise Conflict(f"volume {key.index} of {key.server_id} is open", "close it first")
            if readers_too and guard.readers:
                raise Conflict(f"a recovery point of volume {key.index} of {key.server_id} is being read", "try later")
            yield

    def _opened(self, key: VolumeKey, opening: Callable[[Callable[[], None]], IO], *, writable: bool) -> IO:
        """What `opening` gives, which calls its argument when it is closed; until then others may not change it."""
        guard = self._guard(key)

        def closed() -> None:
            with self._guards_lock:
                self._open.discard(io)
                if writable:
                    guard.writer = False
                else:
                    guard.readers -= 1

        io = opening(closed)
        with self._guards_lock:
            self._open.add(io)
            if writable:
                guard.writer = True
            else:
                guard.readers += 1
        return io


def clipped(extents: list[Extent], size_bytes: int) -> list[Extent]:
    """Merged, and without what lies behind the volume's end."""
    inside = (Extent(e.offset, min(e.length, size_bytes - e.offset)) for e in extents if e.offset < size_bytes)
    return qcow2.merged(extent for extent in inside if extent.length > 0)
