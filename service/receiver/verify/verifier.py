"""One point, read back and compared with what it says of itself: manifest, row, digests, structure, data."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path

from agent.protocol.errors import NotFound, StorageError, UnderstudyError
from recovery.sites.contract import Site
from service.receiver.manifest import Manifest
from service.receiver.points import PointArchive
from service.receiver.verify.data import VolumePoints
from service.receiver.verify.findings import Finding, Part, Verdict
from service.receiver.verify.readback import Stop
from service.receiver.verify.records import Records
from service.receiver.verify.volume import VolumeCheck

_FROM_A_COPY = "restore it from a copy of the site's folder; stock qemu-img still reads the point's volumes"

AloneWith = Callable[[str], AbstractContextManager[None]]
"""(server id) -> while it lasts, nobody pushes, pulls, merges or copies. Raises Conflict, VolumeBusy."""

log = logging.getLogger(__name__)


class Verifier:
    """Calls block for as long as reading takes. `scratch` is a folder for digests that are measured anew."""

    def __init__(
        self,
        site: Site,
        archive: PointArchive,
        records: Records,
        scratch: Path,
        alone_with: AloneWith,
    ) -> None:
        self.records = records
        self._site = site
        self._archive = archive
        self._scratch = scratch
        self._alone_with = alone_with

    def verify(
        self,
        server_id: str,
        point_id: str,
        *,
        heal: bool = False,
        progress: Callable[[int, int], None] = lambda done, total: None,
        stop: Stop | None = None,
    ) -> Verdict:
        """Look at everything of a point; with `heal` put back what can be proven.

        `progress` gets the bytes done and in all. Raises NotFound (removed meanwhile), TransportError (stopped)."""
        verdict = Verdict(point=point_id)
        manifest = self._manifest(server_id, point_id, verdict, heal)
        if manifest is None:
            return verdict
        rows = self.records.compare(manifest)
        if rows and heal:
            self._heal(server_id, rows, "written anew from the manifests", lambda: self.records.restore(server_id))
        verdict.findings += rows
        check = VolumeCheck(self._site, self._archive, manifest, self._scratch, stop or Stop())
        done_bytes = 0
        for index, volume in enumerate(manifest.point.volumes):
            report = functools.partial(_add, done_bytes, manifest.point.size_bytes, progress)
            findings = check.look(index, report)
            if heal and findings:
                with self._told(findings), self._alone_with(server_id):
                    check.heal(index, findings, functools.partial(self._copies, manifest))
            check.remember_doubts(index)
            verdict.findings += findings
            done_bytes += volume.size_bytes
        verdict.read_bytes = check.read_bytes
        if not self._archive.exists(server_id, point_id):
            raise NotFound(f"point {point_id} was removed while it was read", "see: understudy points SERVER")
        if verdict.sound:
            self._mark(verdict)
        return verdict

    def _manifest(self, server_id: str, point_id: str, verdict: Verdict, heal: bool) -> Manifest | None:
        missing = False
        try:
            manifest = self._archive.manifest(server_id, point_id)
            if self.records.is_intact(self._site.read_document(server_id, f"{point_id}.json"), server_id, point_id):
                return manifest
            what = f"the manifest of point {point_id} was altered beside what is signed, or is another point's"
        except NotFound:
            missing = True
            what = f"the site has no manifest of point {point_id}, though it is listed, or has files there"
        except StorageError as error:
            what = f"the manifest of point {point_id} is damaged: {error.message}"
        where = f"{server_id}/documents/{point_id}.json"
        finding = Finding(part=Part.MANIFEST, what=what, where=where, points=[point_id], way_out=_FROM_A_COPY)
        verdict.findings.append(finding)
        if heal:
            with self._told([finding]), self._alone_with(server_id):
                if missing:
                    if self.records.remove_if_nothing_is_left(server_id, point_id):
                        finding.healed = "the row was removed: the site has nothing of such a point"
                elif self.records.restore_manifest(server_id, point_id):
                    finding.healed = "one bit was turned back, as the signature proves"
                    return self._archive.manifest(server_id, point_id)
        return None

    def _copies(self, manifest: Manifest, wanted: set[bytes]) -> dict[bytes, bytes]:
        """What the newest points of the tenant's other servers have of these blocks."""
        others = self.records.servers_of(manifest.tenant) - {manifest.server_id}
        found: dict[bytes, bytes] = {}
        for key in self._site.volumes():
            missing = wanted - found.keys()
            if key.server_id in others and missing:
                with VolumePoints(self._site, self._archive, key) as other:
                    found |= other.copies(missing, other.points[-1:])
        return found

    def _heal(self, server_id: str, findings: list[Finding], healed: str, work: Callable[[], None]) -> None:
        with self._told(findings), self._alone_with(server_id):
            work()
            for finding in findings:
                finding.healed = healed

    @contextlib.contextmanager
    def _told(self, findings: list[Finding]) -> Iterator[None]:
        """Why something could not be healed becomes its way out."""
        try:
            yield
        except UnderstudyError as error:
            for finding in findings:
                if not finding.healed:
                    finding.way_out = f"not healed: {error}"

    def _mark(self, verdict: Verdict) -> None:
        verified_at = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        try:
            self.records.mark_verified(verdict.point, verified_at)
            verdict.verified_at = verified_at
        except StorageError as error:  # a database that cannot be written (a full disk) is no fault of the point
            log.warning("that point %s was verified is not written down: %s", verdict.point, error)


def _add(before_bytes: int, total_bytes: int, progress: Callable[[int, int], None], done_bytes: int) -> None:
    progress(before_bytes + done_bytes, total_bytes)
