"""An open recovery point: its blocks are read straight from the files of its chain, round the page cache.

Point files do not change while one of them is open, so QEMU is only asked where the blocks lie (`qemu-img map`), a
stretch at a time. No daemon has to carry them through a socket, and no cache has to be filled, which costs more
processor time than all the rest. A wrong place would be noticed: every block that is read has a digest.
"""

from __future__ import annotations

import bisect
import json
import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from agent.protocol.errors import Conflict, StorageError
from recovery.sites.local.disk_file import DiskFile
from recovery.sites.local.tools import qemu_img

STRETCH_BYTES = 1 << 30
"""Of volume that one map covers: 16,384 pieces and half a MiB of memory if every cluster lies for itself."""
MAX_STRETCHES = 8


class _Map:
    """Where a stretch of the volume lies, as pieces that follow one another: `lengths[n]` bytes from `starts[n]` on are
    at `places[n]` of the file `layers[n]`; zeros where that is -1."""

    def __init__(self) -> None:
        self.starts, self.lengths, self.places = array("Q"), array("Q"), array("Q")
        self.layers = array("i")

    def add(self, start: int, length: int, layer: int, place: int) -> None:
        """The next piece; joined to the last where it follows on."""
        if self.starts and self.layers[-1] == layer and (layer < 0 or self.places[-1] + self.lengths[-1] == place):
            self.lengths[-1] += length
            return
        self.starts.append(start)
        self.lengths.append(length)
        self.layers.append(layer)
        self.places.append(place)


@dataclass(slots=True)
class _Stretch:
    """A map is asked for by who needs it first, while others that need the same one wait."""

    asking: threading.Lock = field(default_factory=threading.Lock)
    map: _Map | None = None


class SnapshotIO:
    """VolumeIO, for reading only. `layers`: the point's file and all that it stands on, newest first.

    `on_close` is called once, after the files were closed. Raises StorageError, ToolMissing; Conflict for writes."""

    def __init__(self, layers: list[Path], size_bytes: int, *, on_close: Callable[[], None]) -> None:
        self.size_bytes = size_bytes
        self._layers = layers
        self._on_close = on_close
        self._lock = threading.Lock()
        self._stretches: OrderedDict[int, _Stretch] = OrderedDict()
        self._files: list[DiskFile] = []
        try:
            for layer in layers:
                self._files.append(DiskFile(layer))
        except BaseException:
            self._close_files()
            raise

    def read(self, offset: int, length: int) -> bytearray:
        content = bytearray(length)
        self.read_into(offset, memoryview(content))
        return content

    def read_into(self, offset: int, into: memoryview) -> None:
        """Fill `into`; a page-aligned one, read from a page-aligned offset, is filled by the disk itself."""
        if offset < 0 or offset + len(into) > self.size_bytes:
            raise StorageError(f"{len(into)} bytes at {offset} lie outside {self._layers[0].name}")
        while into:
            length = min(len(into), STRETCH_BYTES - offset % STRETCH_BYTES)
            self._read_stretch(offset, into[:length])
            offset, into = offset + length, into[length:]

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        raise Conflict(f"{self._layers[0].name} is open for reading only", "recovery points never change")

    def zero(self, offset: int, length: int) -> None:
        self.write(offset, b"")

    def flush(self) -> None:
        """There is nothing that could be lost."""

    def close(self) -> None:
        with self._lock:
            if not self._files:
                return
            self._close_files()
        self._on_close()

    def _close_files(self) -> None:
        files, self._files = self._files, []
        for file in files:
            file.close()

    def _read_stretch(self, offset: int, into: memoryview) -> None:
        found = self._map(offset // STRETCH_BYTES)
        at = bisect.bisect_right(found.starts, offset) - 1
        while into:
            skip = offset - found.starts[at]
            length = min(len(into), found.lengths[at] - skip)
            layer = found.layers[at]
            if layer < 0:
                into[:length] = bytes(length)
            else:
                try:
                    file = self._files[layer]
                except IndexError:
                    raise StorageError(f"{self._layers[0].name} was closed") from None
                file.read_into(found.places[at] + skip, into[:length])
            offset, into, at = offset + length, into[length:], at + 1

    def _map(self, number: int) -> _Map:
        with self._lock:
            stretch = self._stretches.setdefault(number, _Stretch())
            self._stretches.move_to_end(number)
            if len(self._stretches) > MAX_STRETCHES:
                self._stretches.popitem(last=False)
        with stretch.asking:
            if stretch.map is None:
                stretch.map = self._asked(number * STRETCH_BYTES)
            return stretch.map

    def _asked(self, start: int) -> _Map:
        """QEMU's word on where a stretch lies."""
        length = min(STRETCH_BYTES, self.size_bytes - start)
        listed = qemu_img(
            "map", "--output=json", "-U", "-f", "qcow2", f"--start-offset={start}", f"--max-length={length}",
            str(self._layers[0]), doing=f"read the map of {self._layers[0]}",
        )  # fmt: skip
        found = _Map()
        reached = start
        for entry in json.loads(listed):
            if entry["start"] != reached:
                break
            if entry["zero"] or not entry["present"]:
                found.add(reached, entry["length"], -1, 0)
            elif "offset" in entry and entry["depth"] < len(self._layers):
                found.add(reached, entry["length"], entry["depth"], entry["offset"])
            else:
                raise StorageError(f"{self._layers[0]} holds blocks that are compressed or elsewhere")
            reached += entry["length"]
        if reached < start + length:
            raise StorageError(f"qemu-img does not say where {self._layers[0].name} has byte {reached}")
        return found
