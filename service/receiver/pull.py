"""Pull: the other side says what it holds, and gets only the blocks that differ, each checked when it was read."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field

from agent.protocol.digests import DIGEST_BYTES, ZERO_DIGEST, DigestMap, block_digest
from agent.protocol.errors import BadFrame, NotFound, StorageError
from agent.protocol.frames import MAX_PLAIN_BYTES, Kind, decode_single, encode_blocks, encode_zeros
from agent.protocol.grid import consecutive
from recovery.sites.contract import VolumeIO
from service.receiver.manifest import Manifest
from service.receiver.points import PointArchive

IDLE_SECONDS = 30.0
MAX_OPEN = 8
MAX_ANSWER_BYTES = 128 << 20
"""Of disk in one answer, which is put together in memory: our agent asks for 64 blocks at a time, an export for 128."""
COMPRESSION_LEVEL = 1


@dataclass
class _Reader:
    digests: DigestMap
    io: VolumeIO
    users: int = 0
    used_at: float = field(default_factory=time.monotonic)


class PointReader:
    """Keeps the volumes that are being pulled open between requests; call `close_idle` now and then."""

    def __init__(self, archive: PointArchive) -> None:
        self._archive = archive
        self._lock = threading.Lock()
        self._open: OrderedDict[tuple[str, int], _Reader] = OrderedDict()

    def differing(self, manifest: Manifest, index: int, body: bytes | bytearray) -> bytes:
        """`body` is an OFFER of what the asker holds; returns frames for the blocks of the point that differ.

        Raises StorageError if a block read back is not what the point had."""
        if not 0 <= index < len(manifest.point.volumes):
            raise NotFound(f"point {manifest.point.id} has no volume {index}")
        frame = decode_single(body, Kind.OFFER)
        reader = self._acquire(manifest, index)
        try:
            frame.check_against(reader.digests.grid)
            wanted = [
                index for position, index in enumerate(frame.indices) if frame.digest(position) != reader.digests[index]
            ]
            return self._frames(manifest, reader, wanted)
        finally:
            self._release(reader)

    def _frames(self, manifest: Manifest, reader: _Reader, wanted: list[int]) -> bytes:
        digests, grid = reader.digests, reader.digests.grid
        zeros = [index for index in wanted if digests[index] == ZERO_DIGEST]
        frames = [encode_zeros(zeros)] if zeros else []
        data = tuple(index for index in wanted if digests[index] != ZERO_DIGEST)
        if len(data) * grid.block_bytes > MAX_ANSWER_BYTES:
            raise BadFrame(f"{len(data)} blocks at once are more than an answer can have", "ask for fewer at a time")
        most = MAX_PLAIN_BYTES // grid.block_bytes
        for at in range(0, len(data), most):
            part = data[at : at + most]
            contents: list[bytes | memoryview] = []
            for start, stop in consecutive(part):
                begin, length = grid.span(range(part[start], part[stop - 1] + 1))
                run = memoryview(reader.io.read(begin, length))
                for index in part[start:stop]:
                    block = run[grid.offset(index) - begin :][: grid.length(index)]
                    if block_digest(block) != digests[index]:
                        raise StorageError(f"block {index} of point {manifest.point.id} is damaged at the site")
                    contents.append(block)
            sums = b"".join(digests.run(range(index, index + 1)) for index in part)
            assert len(sums) == len(part) * DIGEST_BYTES
            frames.append(encode_blocks(part, sums, contents, COMPRESSION_LEVEL))
        return b"".join(frames)

    def _acquire(self, manifest: Manifest, index: int) -> _Reader:
        key = (manifest.point.id, index)
        with self._lock:
            reader = self._open.get(key)
            if reader is None:
                digests = self._archive.digests(manifest, index)
                reader = self._open[key] = _Reader(digests, self._archive.open(manifest, index))
            reader.users += 1
            reader.used_at = time.monotonic()
            self._open.move_to_end(key)
            self._shrink(MAX_OPEN, 0.0)
            return reader

    def _release(self, reader: _Reader) -> None:
        with self._lock:
            reader.users -= 1
            reader.used_at = time.monotonic()

    def close_idle(self) -> None:
        """Close what nobody has read from for long, so that retention can merge the chain."""
        with self._lock:
            self._shrink(0, IDLE_SECONDS)

    def close(self) -> None:
        with self._lock:
            self._shrink(0, 0.0)

    def _shrink(self, most: int, idle_seconds: float) -> None:
        now = time.monotonic()
        for key, reader in list(self._open.items()):
            if len(self._open) <= most:
                return
            if not reader.users and now - reader.used_at >= idle_seconds:
                reader.io.close()
                del self._open[key]
