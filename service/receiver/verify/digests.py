"""Digests that were lost or damaged, measured anew from the volume; the signed root says whether they are right.

A document serves every point whose chain names it. It is written anew from the oldest of these that is left: what
later documents say stands over it, as it did before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from agent.protocol.digests import DigestMap
from agent.protocol.errors import NotFound, StorageError
from agent.protocol.grid import BlockGrid
from recovery.sites.contract import Site, VolumeIO, VolumeKey
from service.receiver.digest_documents import DigestDocuments
from service.receiver.manifest import Manifest
from service.receiver.points import PointArchive
from service.receiver.verify.readback import Stop, measure


def culprit_of(site: Site, manifest: Manifest, index: int, scratch: Path) -> str:
    """The point whose document of digests is the first that is damaged in this one's chain; if each looks sound for
    itself and only the root differs: the last."""
    chain = _chain(manifest, index)
    documents = DigestDocuments(site, scratch)
    for point_id in chain:
        try:
            documents.read(manifest.server_id, index, _grid(manifest, index), [point_id]).close()
        except StorageError:
            return point_id
    return chain[-1]


def heal_digests(site: Site, archive: PointArchive, manifest: Manifest, index: int, scratch: Path, stop: Stop) -> int:
    """Write damaged documents of digests anew until the point has its digests again. Returns the bytes read for it.

    Raises StorageError (the volume is damaged as well, or cannot be read), TransportError (stopped)."""
    read_bytes = 0
    for _ in _chain(manifest, index):  # each may be damaged, and each is written once
        culprit = culprit_of(site, manifest, index, scratch)
        read_bytes += _write_anew(site, archive, manifest, index, culprit, scratch, stop)
        with contextlib.suppress(StorageError):
            archive.digests(manifest, index).close()
            return read_bytes
    raise StorageError(f"the digests of point {manifest.point.id}, volume {index} do not fit its root")


def _write_anew(
    site: Site, archive: PointArchive, manifest: Manifest, index: int, culprit: str, scratch: Path, stop: Stop
) -> int:
    oldest = _oldest_with(site, archive, manifest, index, culprit)
    key = VolumeKey(oldest.server_id, index)
    with (
        contextlib.closing(site.open_snapshot(key, oldest.point.id)) as io,
        measured(site, oldest, index, io, scratch, lambda _: None, stop) as (found, read_bytes),
    ):
        if found.root().hex() != oldest.volume(index).root:
            raise StorageError(
                f"volume {index} of point {oldest.point.id} is damaged as well",
                "restore the document from a copy of the site's folder, or use another point",
            )
        documents = DigestDocuments(site, scratch)
        chain = _chain(oldest, index)
        below = chain[: chain.index(culprit)]
        with contextlib.closing(documents.read(key.server_id, index, found.grid, below)) as base:
            documents.write(key.server_id, culprit, index, found, base)
    return read_bytes


def _oldest_with(site: Site, archive: PointArchive, manifest: Manifest, index: int, culprit: str) -> Manifest:
    for point_id in site.snapshots(VolumeKey(manifest.server_id, index)):
        with contextlib.suppress(NotFound, StorageError):
            other = archive.manifest(manifest.server_id, point_id)
            if index < len(other.digests) and culprit in other.digests[index]:
                return other
    return manifest


@contextlib.contextmanager
def measured(
    site: Site, manifest: Manifest, index: int, io: VolumeIO, scratch: Path, progress: Callable[[int], None], stop: Stop
) -> Iterator[tuple[DigestMap, int]]:
    """The digests of what a volume holds now, whatever it should, and the bytes read; the map is gone afterwards."""
    scratch.mkdir(parents=True, exist_ok=True)
    path = scratch / f"{manifest.point.id}.{index}.measured"
    path.unlink(missing_ok=True)
    key = VolumeKey(manifest.server_id, index)
    digests = DigestMap.open(path, _grid(manifest, index))
    try:
        data_in = lambda within: site.snapshot_data(key, manifest.point.id, within)  # noqa: E731
        yield digests, measure(io, digests, data_in, progress, stop)
    finally:
        digests.close()
        path.unlink(missing_ok=True)


def _chain(manifest: Manifest, index: int) -> list[str]:
    if index >= len(manifest.digests) or not manifest.digests[index]:
        raise StorageError(f"the manifest of {manifest.point.id} does not say where the digests are")
    return manifest.digests[index]


def _grid(manifest: Manifest, index: int) -> BlockGrid:
    volume = manifest.volume(index)
    return BlockGrid(volume.size_bytes, volume.block_bytes)
