"""Recovery points as they lie at the site: manifest, digests of every block, volumes to read."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agent.protocol.digests import DigestMap
from agent.protocol.errors import Conflict, NotFound, StorageError, StorageFull
from agent.protocol.grid import BlockGrid
from recovery.sites.contract import Site, VolumeIO, VolumeKey
from service.receiver.digest_documents import SUFFIX as DIGESTS
from service.receiver.digest_documents import DigestDocuments, owner_of
from service.receiver.manifest import Manifest, sealed, unsealed

MAX_CHAIN = 32
"""Documents that one map is made from. After so many a point's map is stored whole again."""
_PENDING = ".pending.json"
_DELETING = ".deleting.json"
_MANIFEST = ".json"

log = logging.getLogger(__name__)


class PointArchive:
    """What the site holds of points. A manifest's existence is what makes a point a point.

    `scratch` is a folder for digest maps while they are in use."""

    def __init__(self, site: Site, key: Ed25519PrivateKey, scratch: Path | None = None) -> None:
        self._site = site
        self._key = key
        self._documents = DigestDocuments(site, scratch)

    # --- making and removing, each step repeatable after a crash ---

    def prepare(self, manifest: Manifest, digests: list[DigestMap]) -> Manifest:
        """Store the digests and the pending manifest, which is returned: it says where the digests are. From here on
        the point will be made, now or at the next start."""
        parent = self._parent(manifest)
        chains = [self._store(manifest, parent, index, digest_map) for index, digest_map in enumerate(digests)]
        manifest = dataclasses.replace(manifest, digests=chains)
        name = manifest.point.id + _PENDING
        try:
            self._site.write_document(manifest.server_id, name, sealed(manifest, self._key))
        except StorageError:
            # it may be there all the same, only not durably; and the push goes on changing what it speaks of
            self._site.delete_document(manifest.server_id, name)
            raise
        return manifest

    def _store(self, manifest: Manifest, parent: Manifest | None, index: int, digests: DigestMap) -> list[str]:
        """Store one volume's digests, as what changed since the parent if that can be told; returns their chain."""
        with contextlib.ExitStack() as open_maps:
            base, chain = None, []
            if parent is not None and index < len(parent.digests) and len(parent.digests[index]) < MAX_CHAIN:
                try:
                    known = open_maps.enter_context(contextlib.closing(self.digests(parent, index)))
                except StorageFull:
                    raise
                except StorageError as error:
                    log.warning("the digests of %s are stored whole: %s", manifest.point.id, error)
                else:
                    if known.grid == digests.grid:
                        base, chain = known, parent.digests[index]
            stored = self._documents.write(manifest.server_id, manifest.point.id, index, digests, base)
            return [*chain, manifest.point.id] if stored else chain

    def _parent(self, manifest: Manifest) -> Manifest | None:
        if manifest.parent is None:
            return None
        try:
            return self.manifest(manifest.server_id, manifest.parent)
        except (NotFound, StorageError):
            return None

    def write_digests(self, manifest: Manifest, index: int, digests: DigestMap) -> None:
        """Store a volume's digests anew, whole, where documents of their chain are damaged. They must have the volume's
        root, and the caller the server's lock. `manifest` is the archive's."""
        point_id = manifest.point.id
        self._documents.rewrite(manifest.server_id, point_id, index, digests)
        chains = [[point_id] if at == index else chain for at, chain in enumerate(manifest.digests)]
        healed = dataclasses.replace(manifest, digests=chains)
        self._site.write_document(manifest.server_id, point_id + _MANIFEST, sealed(healed, self._key))

    def complete(self, manifest: Manifest) -> None:
        """Snapshot the volumes and write the manifest. The heads must be closed."""
        point_id = manifest.point.id
        for index in range(len(manifest.point.volumes)):
            self._site.snapshot(VolumeKey(manifest.server_id, index), point_id)
        self._site.write_document(manifest.server_id, point_id + _MANIFEST, sealed(manifest, self._key))
        self._site.delete_document(manifest.server_id, point_id + _PENDING)

    def remove(self, server_id: str, point_id: str) -> None:
        """Delete a point, but for digests that other points may need: recover() removes them when none does.

        Raises Conflict while it is in use: then it stays whole, and whoever reads it notices nothing; or, if a later
        volume came in use just now, it is no point any more and the rest goes another time."""
        document = self._site.read_document(server_id, point_id + _MANIFEST)
        manifest = self._unsealed(document, point_id)
        for index in range(len(manifest.point.volumes)):
            self._site.check_unused(VolumeKey(server_id, index), point_id)
        self._site.write_document(server_id, point_id + _DELETING, document)
        self._carry_on_removal(server_id, point_id)

    def _carry_on_removal(self, server_id: str, point_id: str) -> None:
        """By name alone: that a point is to be removed was decided, whatever has become of its documents."""
        try:
            with contextlib.suppress(NotFound):
                self._site.delete_snapshot(VolumeKey(server_id, 0), point_id)
        except Conflict:
            if self.exists(server_id, point_id):  # nothing has been destroyed yet
                self._site.delete_document(server_id, point_id + _DELETING)
            raise
        self._site.delete_document(server_id, point_id + _MANIFEST)
        for key in self._volumes_of(server_id, point_id):
            with contextlib.suppress(NotFound):
                self._site.delete_snapshot(key, point_id)
        self._site.delete_document(server_id, point_id + _DELETING)

    def _volumes_of(self, server_id: str, point_id: str) -> list[VolumeKey]:
        """Of a point that is being removed; all that the server has, where that cannot be read."""
        try:
            manifest = self._read(server_id, point_id + _DELETING)
        except StorageError:
            return [key for key in self._site.volumes() if key.server_id == server_id]
        return [VolumeKey(server_id, index) for index in range(len(manifest.point.volumes))]

    def recover(self, server_id: str | None = None) -> list[Manifest]:
        """Carry commits and removals that a crash cut to their end, of one server or of all.

        Returns the manifests of all points there are, each server's in the order in which they were made. Of one
        server: raises StorageError where a commit can be carried no further now."""
        names: dict[str, set[str]] = {}
        for owner, name in self._site.documents(server_id):
            names.setdefault(owner, set()).add(name)
        at_start = server_id is None
        return [
            manifest for owner in names for manifest in self._recover_server(owner, names[owner], at_start=at_start)
        ]

    def _recover_server(self, server_id: str, names: set[str], *, at_start: bool) -> list[Manifest]:
        """Each suffix is looked for from the longest on, since `.json` ends them all."""
        found: dict[str, Manifest] = {}
        unsure = False  # what a manifest that cannot be read would name is not known
        for name in sorted(names):
            if name.endswith(_MANIFEST) and not name.endswith((_PENDING, _DELETING)):
                try:
                    found[owner_of(name)] = self._read(server_id, name)
                except StorageError as error:  # one rotten file must not keep all other points from being used
                    unsure = True
                    log.warning("a recovery point of %s cannot be used: %s", server_id, error)
        for point_id in sorted(owner_of(name) for name in names if name.endswith(_DELETING)):
            log.warning("carrying on the removal of %s after a crash", point_id)
            try:
                self._carry_on_removal(server_id, point_id)
            except (Conflict, StorageError) as error:  # the next start, push or removal finds it again
                log.warning("the removal of %s waits: %s", point_id, error)
            if not self.exists(server_id, point_id):
                found.pop(point_id, None)
        for point_id in sorted(owner_of(name) for name in names if name.endswith(_PENDING)):
            try:
                manifest = self._carry_on_commit(server_id, point_id)
            except StorageError as error:
                if not at_start:  # nothing may be built on what is not yet done
                    raise
                unsure = True
                log.warning("the commit of %s waits: %s", point_id, error)
                continue
            if manifest is not None:
                found[point_id] = manifest
        if not unsure:
            self._drop_digests(server_id, names, found.values())
        return _in_order(found)

    def _carry_on_commit(self, server_id: str, point_id: str) -> Manifest | None:
        """None where there is nothing left to make a point of: nobody was told of it, and the next push makes another.

        It has to be now or never: a working state that has changed since must never become this point."""
        log.warning("carrying on the commit of %s after a crash", point_id)
        try:
            manifest = self._read(server_id, point_id + _PENDING)
        except StorageError as error:
            log.warning("the commit of %s is given up: %s", point_id, error)
        else:
            try:
                self.complete(manifest)
            except NotFound as error:
                log.warning("the commit of %s is given up: %s", point_id, error)
            else:
                return manifest
        self._site.delete_document(server_id, point_id + _PENDING)
        return None

    def _drop_digests(self, server_id: str, names: Iterable[str], manifests: Iterable[Manifest]) -> None:
        """Delete the digest documents that none of all the server's points needs: of points that were removed, and of
        commits that never got as far as their manifest."""
        needed = {point_id for manifest in manifests for chain in manifest.digests for point_id in chain}
        for name in names:
            if name.endswith(DIGESTS) and owner_of(name) not in needed:
                self._site.delete_document(server_id, name)

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
        """The digests of one volume of a point, proven by its root. For reading only: a mapped file, which is gone
        with the map. `manifest` is the archive's. Raises StorageError."""
        volume = manifest.volume(index)
        grid = BlockGrid(volume.size_bytes, volume.block_bytes)
        if index >= len(manifest.digests):
            raise StorageError(f"the manifest of {manifest.point.id} does not say where the digests are")
        digests = self._documents.read(manifest.server_id, index, grid, manifest.digests[index])
        if digests.root().hex() != volume.root:
            digests.close()
            raise StorageError(f"the digests of point {manifest.point.id}, volume {index} are damaged")
        return digests

    def open(self, manifest: Manifest, index: int) -> VolumeIO:
        """One volume of a point, for reading; the caller closes it."""
        return self._site.open_snapshot(VolumeKey(manifest.server_id, index), manifest.point.id)

    def _read(self, server_id: str, name: str) -> Manifest:
        manifest = self._unsealed(self._site.read_document(server_id, name), name)
        if (manifest.server_id, manifest.point.id) != (server_id, owner_of(name)):
            raise StorageError(f"{name}: it is the manifest of point {manifest.point.id} of {manifest.server_id}")
        return manifest

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
