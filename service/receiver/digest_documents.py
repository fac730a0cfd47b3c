"""Digest maps of points as documents at the site: each says only what changed since the point before.

A point changes few of a volume's digests, and 64 TiB have 32 GiB of them. So a point's map is made from a chain of
documents, oldest first: zeros, and then each document's records written over them. The signed manifest names the chain;
the volume's root proves what came of it. A document outlives its point for as long as another point's chain names it,
and never changes, so that removing a point never rewrites another's.

A document comes in parts: `<point>.<volume>.digests`, `<point>.<volume>.1.digests` and so on, numbers little-endian:

    "USDIGST1"  size_bytes u64  block_bytes u32  part u32
    records:    first block u64  count u32  kind u32 (0: zeros, 1: digests)  the digests, where kind is 1
    BLAKE3 of all before
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import mmap
import os
import struct
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from blake3 import blake3

from agent.protocol.digests import DIGEST_BYTES, SEGMENT_BLOCKS, ZERO_DIGEST, DigestMap
from agent.protocol.errors import NotFound, StorageError, StorageFull
from agent.protocol.grid import BlockGrid
from recovery.sites.contract import Site

SUFFIX = ".digests"
PART_BYTES = 8 << 20
"""A part ends once it has so many bytes; a writer and a reader hold one at a time."""
_MAGIC = b"USDIGST1"
_HEADER = struct.Struct("<8sQII")
_RECORD = struct.Struct("<QII")
_ZEROS, _DIGESTS = 0, 1
_SEAL_BYTES = 32

log = logging.getLogger(__name__)

_ZERO_SEGMENT = bytes(SEGMENT_BLOCKS * DIGEST_BYTES)
_GROUP_BYTES = 32 * DIGEST_BYTES


class DigestDocuments:
    """`scratch` is a folder for maps that are being put together; None: the system's own for temporary files."""

    def __init__(self, site: Site, scratch: Path | None) -> None:
        self._site = site
        self._scratch = scratch

    def write(self, server_id: str, point_id: str, volume: int, digests: DigestMap, base: DigestMap | None) -> bool:
        """Store how `digests` differ from `base` (None: from zeros); False if they do not, and nothing was stored.

        Raises StorageError, StorageFull."""
        return self._write(server_id, point_id, volume, digests.grid, _changes(digests, base))

    def rewrite(self, server_id: str, point_id: str, volume: int, digests: DigestMap) -> None:
        """Store every digest, also those of zeros: what comes before in a chain has no say any more."""
        runs = ((blocks.start, digests.run(blocks)) for blocks in digests.grid.pieces(SEGMENT_BLOCKS))
        self._write(server_id, point_id, volume, digests.grid, runs)

    def _write(
        self, server_id: str, point_id: str, volume: int, grid: BlockGrid, runs: Iterable[tuple[int, bytes]]
    ) -> bool:
        part = 0
        content = bytearray()
        for start, changed in runs:
            count = len(changed) // DIGEST_BYTES
            if changed.count(0) == len(changed):
                content += _RECORD.pack(start, count, _ZEROS)
            else:
                content += _RECORD.pack(start, count, _DIGESTS) + changed
            if len(content) >= PART_BYTES:
                self._write_part(server_id, _name(point_id, volume, part), grid, part, content)
                part += 1
                content.clear()
        if content:
            self._write_part(server_id, _name(point_id, volume, part), grid, part, content)
            part += 1
        for left in itertools.count(part):  # of a try before that failed, or of what was rewritten
            if not self._exists(server_id, _name(point_id, volume, left)):
                break
            self._site.delete_document(server_id, _name(point_id, volume, left))
        return part > 0

    def _exists(self, server_id: str, name: str) -> bool:
        try:
            self._site.read_document(server_id, name)
        except NotFound:
            return False
        return True

    def read(self, server_id: str, volume: int, grid: BlockGrid, chain: Sequence[str]) -> DigestMap:
        """The map that a chain of points' documents makes, not yet proven. It lies in a file of its own that is gone
        once the map is closed or forgotten: nothing of it counts as the service's memory.

        Raises StorageError (a document is damaged, or missing)."""
        length = grid.count * DIGEST_BYTES
        try:
            with _scratch_errors(), tempfile.TemporaryFile(dir=self._folder(), prefix="digests-") as file:
                file.truncate(length)
                for offset, content in self._chained(server_id, volume, grid, chain):
                    _write_at(file.fileno(), offset, content)
                return DigestMap(grid, mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ))
        except StorageFull as full:
            # On a full disk points are needed as much as ever: to be pulled, and proven.
            log.warning("%s; for now it takes %d MiB of memory", full.message, length >> 20)
        memory = mmap.mmap(-1, length)
        for offset, content in self._chained(server_id, volume, grid, chain):
            memory[offset : offset + len(content)] = bytes(content)
        return DigestMap(grid, memory)

    def _chained(
        self, server_id: str, volume: int, grid: BlockGrid, chain: Sequence[str]
    ) -> Iterator[tuple[int, bytes | memoryview]]:
        """What the documents write into the map, and where; later ones over earlier ones."""
        for point_id in chain:
            for start, count, changed in self._records(server_id, point_id, volume, grid):
                yield start * DIGEST_BYTES, changed or bytes(count * DIGEST_BYTES)

    def _records(
        self, server_id: str, point_id: str, volume: int, grid: BlockGrid
    ) -> Iterator[tuple[int, int, memoryview]]:
        """(first block, count, digests or nothing for zeros)."""
        for part in itertools.count():
            name = _name(point_id, volume, part)
            try:
                content = self._site.read_document(server_id, name)
            except NotFound:
                if not part:
                    raise StorageError(f"the digest document {name} is missing") from None
                return
            if content[: _HEADER.size] != _header(grid, part) or content[-_SEAL_BYTES:] != _seal(content):
                raise StorageError(f"the digest document {name} is damaged")
            records = memoryview(content)[_HEADER.size : -_SEAL_BYTES]
            at = 0
            while at < len(records):
                start, count, kind = _RECORD.unpack_from(records, at)
                at += _RECORD.size
                if start + count > grid.count:
                    raise StorageError(f"the digest document {name} is damaged")
                length = count * DIGEST_BYTES if kind == _DIGESTS else 0
                yield start, count, records[at : at + length]
                at += length

    def _write_part(self, server_id: str, name: str, grid: BlockGrid, part: int, records: bytearray) -> None:
        content = _header(grid, part) + records
        self._site.write_document(server_id, name, content + blake3(content).digest())

    def _folder(self) -> Path | None:
        if self._scratch is not None:
            self._scratch.mkdir(parents=True, exist_ok=True)
        return self._scratch


def owner_of(name: str) -> str:
    """The point that a document belongs to."""
    return name.partition(".")[0]


def _changes(new: DigestMap, old: DigestMap | None) -> Iterator[tuple[int, bytes]]:
    """Runs of blocks with another digest than before: (first block, digests), none across a segment's end."""
    for blocks in new.grid.pieces(SEGMENT_BLOCKS):
        now = new.run(blocks)
        before = old.run(blocks) if old is not None else _ZERO_SEGMENT[: len(now)]
        if now == before:
            continue
        if old is None and ZERO_DIGEST not in now:  # what most of a full disk's first point is
            yield blocks.start, now
            continue
        begin = end = 0
        for at in _differing(now, before):
            if at != end:
                if end:
                    yield blocks.start + begin // DIGEST_BYTES, now[begin:end]
                begin = at
            end = at + DIGEST_BYTES
        yield blocks.start + begin // DIGEST_BYTES, now[begin:end]


def _differing(now: bytes, before: bytes) -> Iterator[int]:
    """Where the digests differ, rising; groups that are equal are passed over at once."""
    for group in range(0, len(now), _GROUP_BYTES):
        stop = min(group + _GROUP_BYTES, len(now))
        if now[group:stop] != before[group:stop]:
            for at in range(group, stop, DIGEST_BYTES):
                if now[at : at + DIGEST_BYTES] != before[at : at + DIGEST_BYTES]:
                    yield at


def _name(point_id: str, volume: int, part: int) -> str:
    return f"{point_id}.{volume}.{part}{SUFFIX}" if part else f"{point_id}.{volume}{SUFFIX}"


def _header(grid: BlockGrid, part: int) -> bytes:
    return _HEADER.pack(_MAGIC, grid.size_bytes, grid.block_bytes, part)


def _seal(content: bytes) -> bytes:
    return blake3(memoryview(content)[:-_SEAL_BYTES]).digest()


def _write_at(descriptor: int, offset: int, content: bytes | memoryview) -> None:
    while len(content):
        written = os.pwrite(descriptor, content, offset)
        offset, content = offset + written, content[written:]


@contextlib.contextmanager
def _scratch_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        kind = StorageFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else StorageError
        raise kind(f"the receiver cannot put a point's digest map together: {error.strerror}") from error
