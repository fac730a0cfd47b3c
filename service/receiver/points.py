"""Recovery points as they lie at the site: manifest, digests of every block, volumes to read."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agent.protocol.digests import DIGEST_BYTES, DigestMap, block_digest
from agent.protocol.errors import Conflict, NotFound, StorageError
from agent.protocol.grid import BlockGrid
from recovery.sites.contract import Site, VolumeIO, VolumeKey
from service.receiver.manifest import Manifest, sealed, unsealed

_PENDING = ".pending.json"
_DELETING = ".deleting.json"
_MANIFEST = ".json"
_DIGESTS = ".digests"

log = logging.getLogger(__name__)


class PointArchive:
    """What the site holds of points. A manifest's existence is what makes a point a point."""

    def __init__(self, site: Site, key: Ed25519PrivateKey) -> None:
        self._site = site
        self._key = key

    # --- making and removing, each step repeatable after a crash ---

    def prepare(self, manifest: Manifest, digests: list[DigestMap]) -> None:
        """Store the digests and the pending manifest. From here on the point will be made, now or at the next start."""
        for index, digest_map in enumerate(digests):
            content = digest_map.run(range(digest_map.grid.count))
            self._site.write_document(manifest.server_id, _digests_name(manifest.point.id, index), content)
        self._site.write_document(manifest.server_id, manifest.point.id + _PENDING, sealed(manifest, self._key))

    def complete(self, manifest: Manifest) -> None:
        """Snapshot the volumes and write the manifest. The heads must be closed."""
        point_id = manifest.point.id
        for index in range(len(manifest.point.volumes)):
            self._site.snapshot(VolumeKey(manifest.server_id, index), point_id)
        self._site.write_document(manifest.server_id, point_id + _MANIFEST, sealed(manifest, self._key))
        self._site.delete_document(manifest.server_id, point_id + _PENDING)

    def remove(self, server_id: str, point_id: str) -> None:
        """Delete a point. Raises Conflict while it is in use: then it stays whole, and whoever reads it notices
        nothing; or, if only a later volume is in use, it is no point any more and the rest goes another time."""
        document = self._site.read_document(server_id, point_id + _MANIFEST)
        manifest = self._unsealed(document, point_id)
        self._site.write_document(server_id, point_id + _DELETING, document)
        self._carry_on_removal(manifest)

    def _carry_on_removal(self, manifest: Manifest) -> None:
        server_id, point_id = manifest.server_id, manifest.point.id
        try:
            with contextlib.suppress(NotFound):
                self._site.delete_snapshot(VolumeKey(server_id, 0), point_id)
        except Conflict:
            if self.exists(server_id, point_id):  # nothing has been destroyed yet
                self._site.delete_document(server_id, point_id + _DELETING)
            raise
        self._site.delete_document(server_id, point_id + _MANIFEST)
        self._finish_removal(server_id, point_id, len(manifest.point.volumes))

    def recover(self, server_id: str | None = None) -> list[Manifest]:
        """Carry commits and removals that a crash cut to their end, of one server or of all.

        Returns the manifests of all points there are, each server's in the order in which they were made."""
        names: dict[str, set[str]] = {}
        for owner, name in self._site.documents():
            if server_id in (None, owner):
                names.setdefault(owner, set()).add(name)
        return [manifest for owner in names for manifest in self._recover_server(owner, names[owner])]

    def _recover_server(self, server_id: str, names: set[str]) -> list[Manifest]:
        """Each suffix is looked for from the longest on, since `.json` ends them all."""
        found: dict[str, Manifest] = {}
        others: set[str] = set()  # being removed, or damaged: what belongs to them stays
        read: dict[str, Manifest] = {}
        for name in sorted(names):
            if name.endswith(_MANIFEST):
                try:
                    read[name] = self._read(server_id, name)
                except StorageError as error:  # one rotten file must not keep all other points from being used
                    others.add(name.split(".")[0])
                    log.warning("a recovery point of %s cannot be used: %s", server_id, error)
        for name, manifest in read.items():
            if name.endswith(_DELETING):
                log.warning("carrying on the removal of %s after a crash", manifest.point.id)
                try:
                    self._carry_on_removal(manifest)
                except (Conflict, StorageError) as error:  # the next start, push or removal finds it again
                    log.warning("the removal of %s waits: %s", manifest.point.id, error)
                if not self.exists(server_id, manifest.point.id):
                    others.add(manifest.point.id)
        for name, manifest in read.items():
            if name.endswith(_PENDING):
                log.warning("carrying on the commit of %s after a crash", manifest.point.id)
                self.complete(manifest)
            if not name.endswith(_DELETING) and manifest.point.id not in others:
                found[manifest.point.id] = manifest
        for name in names:
            if name.endswith(_DIGESTS) and name.split(".")[0] not in found.keys() | others:
                self._site.delete_document(server_id, name)  # of a commit that never got as far as its manifest
        return _in_order(found)

    def _finish_removal(self, server_id: str, point_id: str, volumes: int) -> None:
        for index in range(volumes):
            with contextlib.suppress(NotFound):
                self._site.delete_snapshot(VolumeKey(server_id, index), point_id)
            self._site.delete_document(server_id, _digests_name(point_id, index))
        self._site.delete_document(server_id, point_id + _DELETING)

    # --- reading ---

    def manifest(self, server_id: str, point_id: str) -> Manifest:
        """Raises NotFound, StorageError (damaged, or signed by another)."""
        return self._read(server_id, point_id + _MANIFEST)

    def exists(self, server_id: str, point_id: str) -> bool:
        try:
            self._site.read_document(server_id, point_id + _MANIFEST)
        except NotFound:
            return False
        return True

    def digests(self, manifest: Manifest, index: int) -> DigestMap:
        """The digests of one volume of a point, proven by its root. Raises StorageError."""
        volume = manifest.volume(index)
        grid = BlockGrid(volume.size_bytes, volume.block_bytes)
        content = self._site.read_document(manifest.server_id, _digests_name(manifest.point.id, index))
        if len(content) != grid.count * DIGEST_BYTES:
            raise StorageError(f"the digests of point {manifest.point.id}, volume {index} are cut short")
        digests = DigestMap(grid, bytearray(content))
        if digests.root().hex() != volume.root:
            raise StorageError(f"the digests of point {manifest.point.id}, volume {index} are damaged")
        return digests

    def open(self, manifest: Manifest, index: int) -> VolumeIO:
        """One volume of a point, for reading; the caller closes it."""
        return self._site.open_snapshot(VolumeKey(manifest.server_id, index), manifest.point.id)

    def verify(self, manifest: Manifest, progress: Callable[[int], None] = lambda _: None) -> int:
        """Read a whole point back and compare every block with its digest. Returns the bytes that were read.

        Raises StorageError naming the first damaged block. `progress` gets the bytes read so far."""
        read_bytes = 0
        for index in range(len(manifest.point.volumes)):
            digests = self.digests(manifest, index)
            grid = digests.grid
            with contextlib.closing(self.open(manifest, index)) as io:
                for blocks in grid.pieces(64):
                    offset, length = grid.span(blocks)
                    data = memoryview(io.read(offset, length))
                    for block in blocks:
                        at = grid.offset(block) - offset
                        if block_digest(data[at : at + grid.length(block)]) != digests[block]:
                            raise StorageError(
                                f"point {manifest.point.id}, volume {index}: block {block} "
                                f"(at byte {grid.offset(block)}) is damaged",
                                "use another point, and push again: the next point is made from the source",
                            )
                    read_bytes += length
                    progress(read_bytes)
        return read_bytes

    def _read(self, server_id: str, name: str) -> Manifest:
        return self._unsealed(self._site.read_document(server_id, name), name)

    def _unsealed(self, document: bytes, name: str) -> Manifest:
        try:
            return unsealed(document, self._key.public_key())
        except StorageError as error:
            raise StorageError(f"{name}: {error.message}", error.hint) from None


def _in_order(found: dict[str, Manifest]) -> list[Manifest]:
    """Each point after the one that it was made on: clocks may jump, the chain at the site does not. Where a link is
    missing, each part as a whole, by the time of its first point."""
    children: dict[str | None, list[Manifest]] = {}
    for manifest in sorted(found.values(), key=lambda manifest: manifest.point.taken_at):
        children.setdefault(manifest.parent if manifest.parent in found else None, []).append(manifest)
    ordered: list[Manifest] = []
    waiting = children.get(None, [])[::-1]
    while waiting:
        ordered.append(waiting.pop())
        waiting += children.get(ordered[-1].point.id, [])[::-1]
    return ordered


def _digests_name(point_id: str, index: int) -> str:
    return f"{point_id}.{index}{_DIGESTS}"
