"""One volume of a point: how it is stored, its digests, and every block of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from agent.protocol.errors import NotFound, StorageError
from agent.protocol.grid import BlockGrid
from recovery.sites.contract import Extent, Site, VolumeIO, VolumeKey
from service.receiver.manifest import Manifest
from service.receiver.points import PointArchive
from service.receiver.verify.data import Elsewhere, VolumePoints
from service.receiver.verify.digests import culprit_of, heal_digests, measured
from service.receiver.verify.doubts import Doubts
from service.receiver.verify.findings import Finding, Part, as_runs, in_words
from service.receiver.verify.readback import Readback, Stop, compare

_FROM_A_COPY = "restore the file from a copy of the site's folder, or use another point"


class VolumeCheck:
    """Looks at a point's volumes, one after the other, and heals what was found."""

    def __init__(self, site: Site, archive: PointArchive, manifest: Manifest, scratch: Path, stop: Stop) -> None:
        self.read_bytes = 0
        self._site = site
        self._archive = archive
        self._manifest = manifest
        self._scratch = scratch
        self._stop = stop
        self._doubts = Doubts(site)
        self._damaged: dict[int, list[int]] = {}
        """Volume -> blocks that are damaged and not healed."""

    @property
    def _id(self) -> str:
        return self._manifest.point.id

    def look(self, index: int, progress: Callable[[int], None]) -> list[Finding]:
        """Raises TransportError (stopped)."""
        findings = []
        with contextlib.suppress(NotFound):
            findings += self._structure(index, self._id)
        try:
            io = self._site.open_snapshot(self._key(index), self._id)
        except (NotFound, StorageError) as error:
            return findings + self._structures_below(index) + [self._unopened(index, error)]
        with contextlib.closing(io):
            size_bytes = self._manifest.volume(index).size_bytes
            if io.size_bytes != size_bytes:
                what = f"volume {index} of point {self._id} has {io.size_bytes} bytes, and had {size_bytes}"
                return [*findings, self._finding(Part.STRUCTURE, index, what, _FROM_A_COPY)]
            try:
                digests = self._archive.digests(self._manifest, index)
            except (NotFound, StorageError) as error:
                return findings + self._undigested(index, io, error, progress)
            with contextlib.closing(digests):
                found = compare(io, digests, lambda e: self._data_in(index, e), progress, self._stop)
        self.read_bytes += found.read_bytes
        self._damaged[index] = found.damaged
        return findings + self._damage(index, found)

    def heal(self, index: int, findings: list[Finding], elsewhere: Elsewhere) -> None:
        """Put back digests and blocks that can be proven. Raises Conflict, StorageError."""
        for finding in findings:
            if finding.part is Part.DIGESTS:
                self.read_bytes += heal_digests(
                    self._site, self._archive, self._manifest, index, self._scratch, self._stop
                )
                finding.healed = "measured anew from the volume, as the signed root proves"
        ill = self._damaged.get(index, [])
        if not ill:
            return
        with VolumePoints(self._site, self._archive, self._key(index)) as points:
            healed = set(points.heal(self._id, ill, elsewhere))
        self._damaged[index] = [block for block in ill if block not in healed]
        for finding in findings:
            if finding.part is Part.DATA:
                self._tell_healed(finding, healed)

    def remember_doubts(self, index: int) -> None:
        """What is damaged in the newest point has to be sent again by the next push."""
        key, ill = self._key(index), self._damaged.get(index)
        if ill is None:
            return
        with VolumePoints(self._site, self._archive, key) as points:
            newest = points.points[-1] if points.points else self._id
            if newest != self._id:
                shared = points.suffering(self._id, ill)
                ill = [block for block, others in shared.items() if newest in others]
        grid = self._grid(index)
        extents = [Extent(*grid.span(range(first, last + 1))) for first, last in as_runs(ill)]
        if newest == self._id:
            self._doubts.replace(key, extents)
        elif extents:
            self._doubts.add(key, extents)

    # --- what is found ---

    def _structure(self, index: int, point_id: str) -> list[Finding]:
        """What is wrong with how one point of the chain stores this volume."""
        key = self._key(index)
        complaints = self._site.snapshot_complaints(key, point_id)
        if not complaints:
            return []
        with VolumePoints(self._site, self._archive, key) as points:
            affected = points.upwards(point_id)
        return [self._finding(Part.STRUCTURE, index, what, _FROM_A_COPY, affected) for what in complaints]

    def _structures_below(self, index: int) -> list[Finding]:
        """The same for the points that this one stands on: for when it cannot be read as it should."""
        with VolumePoints(self._site, self._archive, self._key(index)) as points:
            below = points.downwards(self._id)
        return [finding for point_id in below for finding in self._structure(index, point_id)]

    def _unopened(self, index: int, error: StorageError | NotFound) -> Finding:
        what = f"volume {index} of point {self._id} cannot be opened: {error.message}"
        return self._finding(Part.STRUCTURE, index, what, _FROM_A_COPY)

    def _undigested(
        self, index: int, io: VolumeIO, error: StorageError | NotFound, progress: Callable[[int], None]
    ) -> list[Finding]:
        """Without its digests a volume can still be proven as a whole, by its root."""
        way_out = f"understudy verify --heal {self._id}"
        finding = self._finding(Part.DIGESTS, index, error.message, way_out, self._sharing_digests(index))
        finding.where = f"{self._manifest.server_id}/documents"
        try:
            with measured(self._site, self._manifest, index, io, self._scratch, progress, self._stop) as (found, read):
                self.read_bytes += read
                sound = found.root().hex() == self._manifest.volume(index).root
        except StorageError as unread:
            return [finding, *self._structures_below(index), self._unopened(index, unread)]
        if sound:
            return [finding]
        finding.way_out = _FROM_A_COPY
        what = f"volume {index} of point {self._id} is not what was signed; which blocks, only its digests could tell"
        return [finding, self._finding(Part.DATA, index, what, _FROM_A_COPY)]

    def _sharing_digests(self, index: int) -> list[str]:
        """The points that cannot be compared for the same reason."""
        culprit = culprit_of(self._site, self._manifest, index, self._scratch)
        with VolumePoints(self._site, self._archive, self._key(index)) as points:
            return [point for point in points.points if culprit in points.digest_chain(point)] or [self._id]

    def _damage(self, index: int, found: Readback) -> list[Finding]:
        """A finding for each set of points that share damage."""
        if not found.damaged:
            return []
        with VolumePoints(self._site, self._archive, self._key(index)) as points:
            shared = points.suffering(self._id, found.damaged)
        groups: dict[tuple[str, ...], list[int]] = {}
        for block in found.damaged:
            groups.setdefault(tuple(shared.get(block, [self._id])), []).append(block)
        findings = self._structures_below(index) if found.unreadable else []
        for affected, blocks in groups.items():
            runs = as_runs(blocks)
            at = self._grid(index).offset(blocks[0])
            what = f"point {self._id}, volume {index}: {in_words(runs)} (from byte {at}) damaged"
            if found.unreadable:
                what += f"; {found.reason}"
            if not found.whole:
                what += "; there are so many that the rest was not looked at"
            way_out = f"understudy verify --heal {self._id}, again after the next push, which sends these blocks anew"
            finding = self._finding(Part.DATA, index, what, way_out, list(affected))
            finding.blocks, finding.where = runs, self._location(index, affected[0])
            findings.append(finding)
        return findings

    def _tell_healed(self, finding: Finding, healed: set[int]) -> None:
        blocks = [block for first, last in finding.blocks for block in range(first, last + 1)]
        left = [block for block in blocks if block not in healed]
        if not left:
            finding.healed = "put back from a copy with the signed digest"
            return
        finding.blocks = as_runs(left)
        finding.way_out = (
            f"{len(blocks) - len(left)} of {len(blocks)} blocks were healed, and of the others no good copy was found. "
            "The next push sends them if the server still has them: then heal again; else use another point"
        )

    # --- parts ---

    def _data_in(self, index: int, within: Extent) -> list[Extent]:
        return self._site.snapshot_data(self._key(index), self._id, within)

    def _finding(self, part: Part, index: int, what: str, way_out: str, points: list[str] | None = None) -> Finding:
        affected = points or [self._id]
        where = self._location(index, affected[0])
        return Finding(part=part, what=what, where=where, points=affected, way_out=way_out, volume=index)

    def _location(self, index: int, point_id: str) -> str:
        try:
            return self._site.snapshot_location(self._key(index), point_id)
        except (NotFound, StorageError):
            return f"volume {index} of {self._manifest.server_id}, point {point_id}"

    def _key(self, index: int) -> VolumeKey:
        return VolumeKey(self._manifest.server_id, index)

    def _grid(self, index: int) -> BlockGrid:
        volume = self._manifest.volume(index)
        return BlockGrid(volume.size_bytes, volume.block_bytes)
