"""The files that the digest maps of open working states lie in: caches, made anew from the points."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from agent.protocol.digests import DigestMap
from agent.protocol.errors import StorageError, StorageFull
from agent.protocol.grid import BlockGrid


def new_map(cache: Path, grid: BlockGrid) -> DigestMap:
    """A map of zeros in the file."""
    with _cache_errors(cache):
        cache.parent.mkdir(parents=True, exist_ok=True)
        cache.unlink(missing_ok=True)
    return open_map(cache, grid)


def open_map(cache: Path, grid: BlockGrid) -> DigestMap:
    """The map in the file, made to fit. Raises StorageError, StorageFull."""
    with _cache_errors(cache):
        return DigestMap.open(cache, grid)


@contextlib.contextmanager
def _cache_errors(cache: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        with contextlib.suppress(OSError):
            cache.unlink(missing_ok=True)  # whatever part of its space it got
        kind = StorageFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else StorageError
        raise kind(f"the receiver's digest map {cache} cannot be made: {error.strerror}") from error
