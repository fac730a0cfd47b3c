"""Offline seeding: the initial content of all protected volumes as a file (agent/protocol/seedfile.py).

A seed is no recovery point and needs no instant: what changes while it is written is what the next push sends.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from agent.inventory import machine_id
from agent.pieces import PIECE_BYTES, hash_piece, pieces_with_data
from agent.protocol.digests import DIGEST_BYTES, ZERO_DIGEST
from agent.protocol.errors import StorageError, StorageFull, UsageError
from agent.protocol.frames import encode_blocks
from agent.protocol.grid import DEFAULT_BLOCK_BYTES, BlockGrid
from agent.protocol.messages import VolumeDeclaration
from agent.protocol.seedfile import SeedHeader, SeedWriter
from agent.sources import open_protected, places
from agent.state import Position, State
from agent.volumes.source import SourceVolume, aligned_buffer
from agent.volumes.topology import mounted_filesystems

COMPRESSION_LEVEL = 3
"""A file that is carried waits for its disk more than for the processor."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedResult:
    """The JSON of `understudy-agent seed`. `data_bytes` is what of the volumes is not zero."""

    file: str
    seconds: float
    read_bytes: int
    data_bytes: int
    file_bytes: int
    roots: list[str]


@dataclass(frozen=True, slots=True)
class _Piece:
    """`frame` is None where all of it is zero."""

    blocks: range
    digests: bytes
    data_bytes: int
    frame: bytes | None


def write_seed(state: State, onto: Path, *, on_progress: Progress = lambda done, total: None) -> SeedResult:
    """Write the seed of everything that is protected; the next push trusts it where the service took it in.

    Raises UsageError (nothing protected, no identity, the file is there or lies on what is read), SourceError,
    StorageFull, StorageError."""
    identity, paths = state.identity(), state.protected()
    if not paths:
        raise UsageError("nothing is protected yet", "name the disks: understudy-agent protect PATH...")
    _check_place(onto, [place.device for place in places(state) if place.device is not None])
    began = time.monotonic()
    with state.locked(), contextlib.ExitStack() as resources:
        sources = [one.source for one in open_protected(state, paths, resources)]
        grids = [BlockGrid(source.size_bytes, DEFAULT_BLOCK_BYTES) for source in sources]
        maps = [state.new_digests(path, grid) for path, grid in zip(paths, grids, strict=True)]
        for digests in maps:
            resources.callback(digests.close)
        header = SeedHeader(
            server_id=identity.server_id,
            server_name=identity.server_name,
            ca_fingerprint=identity.ca_fingerprint,
            machine_id=machine_id(),
            made_at=datetime.now(UTC).isoformat(timespec="seconds"),
            volumes=[
                VolumeDeclaration(path=path, size_bytes=grid.size_bytes, block_bytes=grid.block_bytes)
                for path, grid in zip(paths, grids, strict=True)
            ],
        )
        tally = _Tally(sum(grid.size_bytes for grid in grids), on_progress)
        with _seed_file(onto, header) as writer:
            for volume, (source, digests) in enumerate(zip(sources, maps, strict=True)):
                for piece in _pieces(source, digests.grid):
                    digests.set_run(piece.blocks, piece.digests)
                    if piece.frame is not None:
                        writer.add(volume, piece.frame)
                    tally.add(digests.grid.span(piece.blocks)[1], piece)
                source.check_unchanged()
            roots = [digests.root().hex() for digests in maps]
            writer.end(roots)
        for path, digests, root in zip(paths, maps, roots, strict=True):
            grid = digests.grid
            position = Position(root=root, size_bytes=grid.size_bytes, block_bytes=grid.block_bytes)
            state.keep_digests(path, digests, position)
    return SeedResult(
        file=str(onto),
        seconds=round(time.monotonic() - began, 3),
        read_bytes=tally.read_bytes,
        data_bytes=tally.data_bytes,
        file_bytes=onto.stat().st_size,
        roots=roots,
    )


class _Tally:
    def __init__(self, total_bytes: int, on_progress: Progress) -> None:
        self.read_bytes = self.data_bytes = self._done_bytes = 0
        self._total_bytes = total_bytes
        self._on_progress = on_progress

    def add(self, size_bytes: int, piece: _Piece) -> None:
        self._done_bytes += size_bytes
        self.read_bytes += size_bytes if piece.frame is not None else 0
        self.data_bytes += piece.data_bytes
        self._on_progress(self._done_bytes, self._total_bytes)


def _pieces(source: SourceVolume, grid: BlockGrid) -> Iterator[_Piece]:
    """The volume in order, read, hashed and packed by as many threads as there are processors, a few pieces ahead."""
    workers = os.cpu_count() or 2
    buffers = [aligned_buffer(PIECE_BYTES) for _ in range(2 * workers)]
    with ThreadPoolExecutor(workers, "seed") as threads:
        under_way: collections.deque[tuple[Future[_Piece], memoryview]] = collections.deque()
        for blocks, has_data in pieces_with_data(grid, source.data_ranges()):
            if not buffers:
                done, buffer = under_way.popleft()
                yield done.result()
                buffers.append(buffer)
            buffer = buffers.pop()
            under_way.append((threads.submit(_piece, source, grid, blocks, has_data, buffer), buffer))
        for done, _ in under_way:
            yield done.result()


def _piece(source: SourceVolume, grid: BlockGrid, blocks: range, has_data: bool, buffer: memoryview) -> _Piece:
    if not has_data:
        return _Piece(blocks, bytes(len(blocks) * DIGEST_BYTES), 0, None)
    offset, length = grid.span(blocks)
    source.read_into(buffer[:length], offset)
    digests = hash_piece(grid, buffer[:length])
    each = [digests[at : at + DIGEST_BYTES] for at in range(0, len(digests), DIGEST_BYTES)]
    kept = [(index, digest) for index, digest in zip(blocks, each, strict=True) if digest != ZERO_DIGEST]
    if not kept:
        return _Piece(blocks, digests, 0, None)
    contents = [buffer[grid.offset(index) - offset :][: grid.length(index)] for index, _ in kept]
    frame = encode_blocks(
        [index for index, _ in kept], b"".join(digest for _, digest in kept), contents, COMPRESSION_LEVEL
    )
    return _Piece(blocks, digests, sum(map(len, contents)), bytes(frame))


@contextlib.contextmanager
def _seed_file(onto: Path, header: SeedHeader) -> Iterator[SeedWriter]:
    """It has its name once it is whole; whatever fails leaves nothing. Raises StorageFull, StorageError."""
    partial = onto.with_name(onto.name + ".partial")
    try:
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb", 1 << 20) as file:
            writer = SeedWriter(file, header)
            yield writer
            file.flush()
            os.fsync(file.fileno())
        partial.replace(onto)
    except OSError as error:
        partial.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StorageFull(
                f"{onto} does not fit where it was to be written: {error.strerror}",
                "nothing was left there; name a larger medium (FAT cannot hold files over 4 GiB)",
            ) from None
        raise StorageError(f"{onto} cannot be written: {error.strerror}", "check the medium, or name another") from None
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _check_place(onto: Path, paths: list[str]) -> None:
    if onto.exists():
        raise UsageError(f"{onto} is there already", "remove it, or name another file")
    try:
        place = onto.absolute().parent.stat().st_dev
        for found in mounted_filesystems(*paths):
            if Path(found.mountpoint).stat().st_dev == place:
                raise UsageError(f"{onto} would lie on a protected disk and so in itself", "name another medium")
    except OSError as error:
        raise UsageError(f"{onto} cannot be written: {error.strerror}", "name a folder that there is") from None
