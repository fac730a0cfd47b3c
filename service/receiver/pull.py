"""Pull: the other side says what it holds, and gets only the blocks that differ, each checked when it was read."""

from __future__ import annotations

import contextlib
import mmap
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from agent.protocol.digests import DIGEST_BYTES, ZERO_DIGEST, DigestMap, block_digest
from agent.protocol.errors import NotFound, StorageError
from agent.protocol.frames import Frame, Kind, blocks_frame, decode_single, encode_until, encode_zeros
from agent.protocol.grid import MAX_BLOCK_BYTES, consecutive
from recovery.sites.contract import VolumeIO
from service.receiver.manifest import Manifest
from service.receiver.points import PointArchive

IDLE_SECONDS = 30.0
MAX_OPEN = 8
ANSWER_BYTES = 4 << 20
"""Of disk in one answer, which is put together in memory."""
COMPRESSION_LEVEL = 1
MAX_COMPRESSION_LEVEL = 3
"""An asker behind a slow line may ask for more than 1; the work is ours."""


@dataclass
class _Reader:
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


class PointReader:
    """Keeps the volumes that are being pulled open between requests; call `close_idle` now and then."""

    def __init__(self, archive: PointArchive) -> None:
        self._archive = archive
        self._lock = threading.Lock()
        self._readers: OrderedDict[tuple[str, int], _Reader] = OrderedDict()
        self._own = threading.local()

    def differing(
        self, manifest: Manifest, index: int, body: bytes | bytearray, level: int = COMPRESSION_LEVEL
    ) -> bytes:
        """`body` is an OFFER of what the asker holds; returns frames for the blocks of the point that differ, packed
        as hard as `level` says.

        An answer has at most ANSWER_BYTES; where that is not all, an UNTIL frame says which blocks it covers.
        Raises StorageError if a block read back is not what the point had."""
        if not 0 <= index < len(manifest.point.volumes):
            raise NotFound(f"point {manifest.point.id} has no volume {index}")
        offer = decode_single(body, Kind.OFFER)
        with self._reader(manifest, index) as (digests, io):
            offer.check_against(digests.grid)
            return self._frames(manifest, digests, io, offer, min(max(level, 0), MAX_COMPRESSION_LEVEL))

    def _frames(self, manifest: Manifest, digests: DigestMap, io: VolumeIO, offer: Frame, level: int) -> bytes:
        zeros: list[int] = []
        data: list[int] = []
        most = max(1, ANSWER_BYTES // digests.grid.block_bytes)
        until = None
        for position, index in enumerate(offer.indices):
            wanted = digests[index]
            if offer.digest(position) == wanted:
                continue
            if wanted == ZERO_DIGEST:
                zeros.append(index)
            elif len(data) < most:
                data.append(index)
            else:
                until = index
                break
        frames: list[bytes | memoryview] = [encode_zeros(zeros)] if zeros else []
        if data:
            frames += self._content(manifest, digests, io, tuple(data), level)
        if until is not None:
            frames.append(encode_until(until))
        return b"".join(frames)

    def _content(
        self, manifest: Manifest, digests: DigestMap, io: VolumeIO, data: tuple[int, ...], level: int
    ) -> tuple[bytes, bytes | memoryview]:
        """A BLOCKS frame. The blocks are read next to one another into memory that the disk can write to itself."""
        grid = digests.grid
        content = self._memory()
        filled = 0
        sums: list[bytes] = []
        for start, stop in consecutive(data):
            blocks = range(data[start], data[stop - 1] + 1)
            offset, length = grid.span(blocks)
            io.read_into(offset, content[filled : filled + length])
            expected = digests.run(blocks)
            for at, index in enumerate(blocks):
                begin = filled + at * grid.block_bytes
                digest = expected[at * DIGEST_BYTES : (at + 1) * DIGEST_BYTES]
                if block_digest(content[begin : begin + grid.length(index)]) != digest:
                    raise StorageError(
                        f"block {index} of point {manifest.point.id} is damaged at the site",
                        "see how much of it: understudy verify; another point may have it whole",
                    )
            sums.append(expected)
            filled += length
        return blocks_frame(data, b"".join(sums), [content[:filled]], level)

    def _memory(self) -> memoryview:
        memory: memoryview | None = getattr(self._own, "memory", None)
        if memory is None:
            memory = self._own.memory = memoryview(mmap.mmap(-1, max(ANSWER_BYTES, MAX_BLOCK_BYTES)))
        return memory

    @contextlib.contextmanager
    def _reader(self, manifest: Manifest, index: int) -> Iterator[tuple[DigestMap, VolumeIO]]:
        key = (manifest.point.id, index)
        with self._lock:
            reader = self._readers.setdefault(key, _Reader())
            reader.users += 1
            self._readers.move_to_end(key)
            surplus = self._surplus(MAX_OPEN, 0.0)
        _close(surplus)
        try:
            with reader.opening:
                if reader.opened is None:
                    reader.opened = self._archive.digests(manifest, index), self._archive.open(manifest, index)
                opened = reader.opened
            yield opened
        finally:
            with self._lock:
                reader.users -= 1
                reader.used_at = time.monotonic()

    def close_idle(self) -> None:
        """Close what nobody has read from for long, so that retention can merge the chain."""
        with self._lock:
            surplus = self._surplus(0, IDLE_SECONDS)
        _close(surplus)

    def close(self) -> None:
        with self._lock:
            surplus = self._surplus(0, 0.0)
        _close(surplus)

    def _surplus(self, most: int, idle_seconds: float) -> list[_Reader]:
        """Take out what nobody uses, the longest unused first, until `most` are left."""
        now = time.monotonic()
        taken: list[_Reader] = []
        for key, reader in list(self._readers.items()):
            if len(self._readers) <= most:
                break
            if not reader.users and now - reader.used_at >= idle_seconds:
                taken.append(self._readers.pop(key))
        return taken


def _close(readers: list[_Reader]) -> None:
    for reader in readers:
        reader.close()
