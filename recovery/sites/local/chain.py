"""The folder of one replica volume: head.qcow2 on a chain of point files, in which order, and which are being deleted.

A point that is being deleted has a marker beside it, `<point>.deleting`: from then on nobody sees the point, and its
file may be in the middle of taking in its child's content. The child reads the same all along.
"""

from __future__ import annotations

import threading
from pathlib import Path

from agent.protocol.errors import NotFound, StorageError
from recovery.sites.local.durable import check_name, forget_cached, storage_errors, sync_file, sync_folder
from recovery.sites.local.qcow2 import Header, complaints, merge_down, read_header
from recovery.sites.local.reshape import cover, resize

HEAD = "head"
_IMAGE = ".qcow2"
_MARKER = ".deleting"


class Chain:
    """Raises StorageError, StorageFull; Conflict where another process holds a file."""

    def __init__(self, folder: Path, renaming: threading.Lock) -> None:
        """`renaming` is shared by all that look at this folder: who lists it sees each file once."""
        self.folder = folder
        self._renaming = renaming

    @property
    def head(self) -> Path:
        return self.folder / f"{HEAD}{_IMAGE}"

    def point(self, point_id: str) -> Path:
        """The file's path, whether it is there or not. Raises SiteError for an unfit name."""
        if point_id == HEAD:
            raise NotFound(f"there is no recovery point {point_id!r}")
        return self.folder / f"{check_name(point_id, 'a recovery point')}{_IMAGE}"

    def existing_point(self, point_id: str) -> Path:
        """Raises NotFound, also for one that is being deleted."""
        path = self.point(point_id)
        if not path.exists() or self._marker(point_id).exists():
            raise NotFound(f"{self.folder.parent.name}/{self.folder.name} has no recovery point {point_id}")
        return path

    def points(self) -> list[str]:
        """Oldest first, without those that are being deleted."""
        return [name for name in self._order() if not self._marker(name).exists()]

    def layers_above(self, point_id: str | None) -> list[Path]:
        """The head and every point file between it and `point_id` (None: all), newest first."""
        layers = [self.head]
        for name in reversed(self._order()):
            if name == point_id:
                break
            layers.append(self.point(name))
        return layers

    def below(self, point_id: str) -> set[str]:
        """The point and all that its file needs."""
        order = self._order()
        return set(order[: order.index(point_id) + 1]) if point_id in order else set()

    def snapshot(self, point_id: str) -> None:
        """The head becomes the point. Repeatable."""
        path = self.point(point_id)
        with storage_errors(f"make recovery point {point_id}"):
            if not path.exists():
                if not self.head.exists():
                    raise NotFound(f"{self.folder} has no working state to make recovery point {point_id} from")
                sync_file(self.head)
                with self._renaming:
                    self.head.rename(path)
            path.chmod(0o444)
            sync_file(path)
            sync_folder(self.folder)

    def delete(self, point_id: str) -> None:
        """Mark, merge the child down, give the merged file the child's name. Repeatable from any instant on.

        Until the rename the child has all that it held, and its backing file reads the same wherever the child
        shows through; after it the former backing file is the child. Raises StorageError, and leaves the point as it
        is, where the structures of either file are damaged.
        """
        path, marker = self.point(point_id), self._marker(point_id)
        with storage_errors(f"delete recovery point {point_id}"):
            if path.exists():
                self.check_mergeable(point_id)
                marker.touch()
                sync_folder(self.folder)
                self._merge(path)
            if marker.exists():
                sync_folder(self.folder)
                marker.unlink()

    def unfinished(self) -> list[str]:
        """Points whose deletion was cut off."""
        return sorted(marker.name.removesuffix(_MARKER) for marker in self.folder.glob(f"*{_MARKER}"))

    def drop_unfinished_tip(self) -> None:
        """Without a head, nothing is left that needs a newest point that is being deleted."""
        for name in reversed(self._order()):
            if self.head.exists() or not self._marker(name).exists():
                return
            self.delete(name)

    def check_mergeable(self, point_id: str) -> None:
        """Raises StorageError for a point whose file, or its child's, has damaged structures: what is written into a
        file that counts its own space wrongly may land on what other points hold."""
        path = self.point(point_id)
        if not path.exists() or self._marker(point_id).exists():  # gone, or begun when it was sound
            return
        child = self._child(path)
        wrong = [] if child is None else complaints(path) + complaints(child)
        if wrong:
            raise StorageError(
                f"nothing can be merged: {wrong[0]}", "restore the file from a copy of the site's folder"
            )

    def _merge(self, path: Path) -> None:
        child = self._child(path)
        if child is None:
            with self._renaming:
                path.unlink()
            return
        path.chmod(0o644)
        child.chmod(0o644)
        forget_cached(path)  # what an attempt before could not write would be taken for written
        # the size first: the child never looks behind its own end, and behind its backing file's it sees zeros
        size_bytes, child_bytes = read_header(path).size_bytes, read_header(child).size_bytes
        if child_bytes > size_bytes:
            # qemu-img writes the new size before it writes that nothing of what lies below shows in there. Cut off in
            # between, the child would show what the volume held there before it was made smaller.
            cover(child, size_bytes)
        resize(path, child_bytes)
        merge_down(child, into=path)
        path.chmod(0o644 if child == self.head else 0o444)
        sync_file(path)
        with self._renaming:
            path.replace(child)

    def damage_of_head(self) -> str | None:
        """What makes the working state unfit to be written to, if anything does. It has to be there, and closed."""
        try:
            backing = read_header(self.head).backing
        except StorageError as error:
            return error.message
        order = self._order()
        if backing != (self.point(order[-1]).name if order else None):
            return f"{self.head} stands on {backing!r}, which is not the newest point"
        return next(iter(complaints(self.head)), None)

    def drop_head(self) -> None:
        self.head.unlink()
        sync_folder(self.folder)

    def _child(self, path: Path) -> Path | None:
        for other, header in self._headers().items():
            if header.backing == path.name:
                return other
        if self.head.exists() and read_header(self.head).backing == path.name:
            return self.head
        return None

    def _headers(self) -> dict[Path, Header]:
        """Of the point files: a working state that is damaged keeps nobody from them."""
        with storage_errors(f"list {self.folder}"), self._renaming:
            return {path: read_header(path) for path in self.folder.glob(f"*{_IMAGE}") if path != self.head}

    def _order(self) -> list[str]:
        """Every point file, oldest first."""
        headers = self._headers()
        child_of = {header.backing: path for path, header in headers.items()}
        if len(child_of) != len(headers):
            raise StorageError(f"the point files in {self.folder} form no single chain", "see qemu-img info of each")
        order = []
        at = child_of.get(None)
        while at is not None:
            order.append(at.name.removesuffix(_IMAGE))
            at = child_of.get(at.name)
        if len(order) != len(headers):
            raise StorageError(
                f"a point file is missing in {self.folder}: {len(headers) - len(order)} others need it",
                "qemu-img info --backing-chain names it",
            )
        return order

    def _marker(self, point_id: str) -> Path:
        return self.folder / f"{point_id}{_MARKER}"
