"""Replica volumes and documents in memory: the part of the Site contract that a receiver uses, quick enough for models.

It survives its receiver, as a site survives a service that was killed. Whatever was open then is simply forgotten. Its
`fuse` kills the receiver right before one of the changes that it is about to make.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

from agent.protocol.errors import Conflict, NotFound
from recovery.sites.contract import Extent, VolumeKey


class Killed(BaseException):
    """The receiver is no more: nothing of it may go on, nor catch this."""


class Fuse:
    """Blows when so many changes have been made; then no other is."""

    def __init__(self) -> None:
        self.left: int | None = None

    def burn(self) -> None:
        if self.left is None or threading.current_thread() is not threading.main_thread():
            return
        if self.left == 0:
            raise Killed
        self.left -= 1


class MemoryIO:
    def __init__(self, content: bytearray, fuse: Fuse, *, writable: bool) -> None:
        self._content = content
        self._fuse = fuse
        self._writable = writable
        self.open = True

    @property
    def size_bytes(self) -> int:
        return len(self._content)

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self._content[offset : offset + length])

    def read_into(self, offset: int, into: memoryview) -> None:
        into[:] = self._content[offset : offset + len(into)]

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        if not self._writable or not self.open:
            raise Conflict("it is not open for writing")
        self._fuse.burn()
        self._content[offset : offset + len(data)] = data

    def zero(self, offset: int, length: int) -> None:
        self.write(offset, bytes(length))

    def flush(self) -> None: ...

    def close(self) -> None:
        self.open = False


class MemorySite:
    def __init__(self) -> None:
        self._heads: dict[VolumeKey, bytearray] = {}
        self._points: dict[VolumeKey, dict[str, bytes]] = {}
        self._documents: dict[tuple[str, str], bytes] = {}
        self._writers: dict[VolumeKey, MemoryIO] = {}
        self.fuse = Fuse()

    def crash(self) -> None:
        """The process that had volumes open is gone."""
        self.fuse.left = None
        for io in self._writers.values():
            io.close()

    def make_volume(self, key: VolumeKey, size_bytes: int) -> None:
        self._check_closed(key)
        self.fuse.burn()
        head = self._heads.setdefault(key, bytearray(self._newest(key)))
        del head[size_bytes:]
        head.extend(bytes(size_bytes - len(head)))

    def open_volume(self, key: VolumeKey) -> MemoryIO:
        self._check_closed(key)
        if key not in self._heads:
            raise NotFound("no working state")
        io = self._writers[key] = MemoryIO(self._heads[key], self.fuse, writable=True)
        return io

    def volume_exists(self, key: VolumeKey) -> bool:
        return key in self._heads

    def changes(self, key: VolumeKey) -> list[Extent]:
        self._check_closed(key)
        head, newest = self._heads[key], self._newest(key)
        newest = newest[: len(head)].ljust(len(head), b"\0")
        starts = range(0, len(head), 512)
        return [Extent(at, 512) for at in starts if head[at : at + 512] != newest[at : at + 512]]

    def revert(self, key: VolumeKey) -> None:
        self._check_closed(key)
        self.fuse.burn()
        self._heads.pop(key, None)

    def snapshot(self, key: VolumeKey, point_id: str) -> None:
        self._check_closed(key)
        self.fuse.burn()
        if point_id not in self._points.get(key, {}):
            self._points.setdefault(key, {})[point_id] = bytes(self._heads.pop(key))

    def open_snapshot(self, key: VolumeKey, point_id: str) -> MemoryIO:
        try:
            return MemoryIO(bytearray(self._points[key][point_id]), self.fuse, writable=False)
        except KeyError:
            raise NotFound(f"no point {point_id}") from None

    def snapshots(self, key: VolumeKey) -> list[str]:
        return list(self._points.get(key, {}))

    def delete_snapshot(self, key: VolumeKey, point_id: str) -> None:
        self._check_closed(key)
        self.fuse.burn()
        self._points.get(key, {}).pop(point_id, None)

    def check_unused(self, key: VolumeKey, point_id: str) -> None:
        self._check_closed(key)

    def volumes(self) -> list[VolumeKey]:
        return sorted(self._heads.keys() | self._points.keys())

    def free_bytes(self) -> int:
        return 1 << 40

    def write_document(self, server_id: str, name: str, content: bytes) -> None:
        self.fuse.burn()
        self._documents[server_id, name] = bytes(content)

    def read_document(self, server_id: str, name: str) -> bytes:
        try:
            return self._documents[server_id, name]
        except KeyError:
            raise NotFound(f"no document {name}") from None

    def delete_document(self, server_id: str, name: str) -> None:
        self.fuse.burn()
        self._documents.pop((server_id, name), None)

    def documents(self, server_id: str | None = None) -> Iterator[tuple[str, str]]:
        yield from sorted(place for place in self._documents if server_id in (None, place[0]))

    def _newest(self, key: VolumeKey) -> bytes:
        return next(reversed(self._points.get(key, {}).values()), b"")

    def _check_closed(self, key: VolumeKey) -> None:
        if key in self._writers and self._writers[key].open:
            raise Conflict("it is open")
