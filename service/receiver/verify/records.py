"""What is written about points: signed manifests at the site, and the rows that are a view of them."""

from __future__ import annotations

import base64
import dataclasses
import json
import logging
import re
from collections.abc import Callable
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from agent.protocol.errors import NotFound, StorageError
from agent.protocol.messages import Point
from recovery.seals import turned_back
from recovery.sites.contract import Site, VolumeKey
from service.receiver.manifest import Manifest, unsealed
from service.receiver.points import PointArchive
from service.receiver.verify.findings import Finding, Part

log = logging.getLogger(__name__)

_MANIFEST = re.compile(r"([^.]+)\.json")
_UNDER_WAY = re.compile(r"([^.]+)\.(?:pending|deleting)\.json")


class Rows(Protocol):
    """The rows about points, as far as a verification needs them."""

    def get(self, point_id: str, tenant: str | None = None) -> Manifest:
        """Raises NotFound, StorageError."""
        ...

    def places(self, tenant: str) -> list[tuple[str, str]]:
        """(server id, point id) of a tenant's points, newest first."""
        ...

    def newest_first(self, server_id: str) -> list[Point]: ...

    def mark_verified(self, point_id: str, verified_at: str) -> None: ...

    def remove(self, point_id: str) -> None:
        """Gone already: does nothing."""
        ...

    def restore(self, manifests: list[Manifest]) -> None:
        """Make a server's rows say what its manifests, oldest first, say."""
        ...


class Records:
    """`servers_of` gives the ids of a tenant's servers. Raises as rows and site do."""

    def __init__(
        self,
        site: Site,
        archive: PointArchive,
        rows: Rows,
        key: Ed25519PublicKey,
        servers_of: Callable[[str], set[str]],
    ) -> None:
        self._site = site
        self._archive = archive
        self._rows = rows
        self._key = key
        self.servers_of = servers_of

    def known(self, tenant: str) -> list[tuple[str, str]]:
        """(server id, point id) of all points that the rows or the site know of, also where neither can be read."""
        try:
            listed = self._rows.places(tenant)
        except StorageError as error:  # then each point's finding says so
            log.warning("the rows of points cannot be read: %s", error)
            listed = []
        unlisted = sorted(self._at_site() - set(listed))
        return listed + [place for place in unlisted if self._belongs(*place, tenant)]

    def locate(self, point_id: str, tenant: str) -> str:
        """The id of the server whose point this is. Raises NotFound."""
        for server_id, name in self._site.documents():
            if name == f"{point_id}.json" and self._belongs(server_id, point_id, tenant):
                return server_id
        for server_id, orphan in self._at_site():
            if orphan == point_id and self._belongs(server_id, point_id, tenant):
                return server_id
        return self._rows.get(point_id, tenant).server_id

    def _at_site(self) -> set[tuple[str, str]]:
        """(server id, point id): of manifests, and of snapshots that have lost theirs. Those that are just being made
        or removed have another document; it is looked for after them, so that it is there already, or they are gone."""
        snapshots = {(key.server_id, point_id) for key in self._site.volumes() for point_id in self._snapshots(key)}
        names = set(self._site.documents())
        manifests = {(server_id, found[1]) for server_id, name in names if (found := _MANIFEST.fullmatch(name))}
        under_way = {(server_id, found[1]) for server_id, name in names if (found := _UNDER_WAY.fullmatch(name))}
        return manifests | (snapshots - under_way)

    def _snapshots(self, key: VolumeKey) -> list[str]:
        try:
            return self._site.snapshots(key)
        except StorageError as error:  # a chain that cannot be followed is told of with its points
            log.warning("volume %d of %s: %s", key.index, key.server_id, error)
            return []

    def compare(self, manifest: Manifest) -> list[Finding]:
        """Where the row of a point does not say what the signed manifest says."""
        point_id = manifest.point.id
        try:
            row = self._rows.get(point_id)
            wrong = [
                f"{name} is {found!r}, and {signed!r} was signed"
                for name, found, signed in _fields(row, manifest)
                if found != signed
            ]
            wrong = wrong or self._misplaced(manifest)
        except NotFound:
            return [_row_finding(point_id, f"point {point_id} has no row in the database")]
        except StorageError as error:
            return [_row_finding(point_id, f"the row of point {point_id} cannot be read: {error.message}")]
        return [_row_finding(point_id, f"the row of point {point_id} is wrong: {'; '.join(wrong)}")] if wrong else []

    def restore(self, server_id: str) -> None:
        """Write a server's rows anew from its manifests. Needs the server's lock."""
        self._rows.restore(self._archive.recover(server_id))

    def restore_manifest(self, server_id: str, point_id: str) -> bool:
        """Undo a single flipped bit of a manifest: the signature proves that it was so. False where that is not it.

        Nothing is signed anew: whoever can write to the site must not get a signature for what they wrote."""
        name = f"{point_id}.json"
        damaged = self._site.read_document(server_id, name)
        healed = turned_back(damaged, lambda candidate: self.is_intact(candidate, server_id, point_id))
        if healed is not None:
            self._site.write_document(server_id, name, healed)
        return healed is not None

    def is_intact(self, document: bytes, server_id: str, point_id: str) -> bool:
        """Is this the manifest of that point, to the byte? JSON can say the same in other ways than we write it."""
        try:
            manifest = unsealed(document, self._key)
            outer = json.loads(document)
            signature = base64.b64decode(outer["signature"])
        except (StorageError, ValueError, KeyError):
            return False
        as_written = {
            "manifest": outer["manifest"],
            "signature": base64.b64encode(signature).decode(),
            "public_key": base64.b64encode(self._key.public_bytes_raw()).decode(),
        }
        right_place = (manifest.server_id, manifest.point.id) == (server_id, point_id)
        return right_place and json.dumps(as_written).encode() == document

    def remove_if_nothing_is_left(self, server_id: str, point_id: str) -> bool:
        """Of a point that is listed and has no manifest. Needs the server's lock."""
        if (server_id, point_id) in self._at_site():
            return False
        self._rows.remove(point_id)
        return True

    def mark_verified(self, point_id: str, verified_at: str) -> None:
        self._rows.mark_verified(point_id, verified_at)

    def _belongs(self, server_id: str, point_id: str, tenant: str) -> bool:
        try:
            return self._archive.manifest(server_id, point_id).tenant == tenant
        except (NotFound, StorageError):  # it does not say any more; its server's row may
            return server_id in self.servers_of(tenant)

    def _misplaced(self, manifest: Manifest) -> list[str]:
        listed = [point.id for point in self._rows.newest_first(manifest.server_id)]
        if manifest.point.id not in listed:
            return ["the database's index does not lead to it"]
        if manifest.parent in listed and listed.index(manifest.point.id) > listed.index(manifest.parent):
            return ["it is listed as older than the point that it was made on"]
        return []


def _fields(row: Manifest, manifest: Manifest) -> list[tuple[str, object, object]]:
    """(name, as the row has it, as it was signed)."""
    own = [(name, getattr(row, name), getattr(manifest, name)) for name in ("server_id", "tenant", "parent")]
    of_point = [
        (field.name, getattr(row.point, field.name), getattr(manifest.point, field.name))
        for field in dataclasses.fields(Point)
        if field.name not in ("verified_at", "bootable")
    ]
    return own + of_point


def _row_finding(point_id: str, what: str) -> Finding:
    return Finding(
        part=Part.ROW,
        what=what,
        where=f"database, table points, {point_id}",
        points=[point_id],
        way_out="the point itself is what counts, and rows are made again from manifests: "
        f"understudy verify --heal {point_id}",
    )
