"""The receiver: begins, feeds and commits push sessions. Calls block; the HTTP layer runs them in threads."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from agent.protocol.digests import DIGEST_BYTES
from agent.protocol.errors import BadMessage, NotFound, RootMismatch, SessionUnknown, StorageError, StorageFull
from agent.protocol.frames import Kind, decode_single
from agent.protocol.grid import BlockGrid
from agent.protocol.messages import (
    BeginReply,
    BeginRequest,
    BlocksReply,
    CommitRequest,
    Point,
    PointVolume,
    VolumeDeclaration,
    VolumeStanding,
)
from recovery.control import Server
from recovery.sites.contract import Site
from service.receiver.asked import check_commit, grids_of, one_of
from service.receiver.dedupe.dedupe import Dedupe
from service.receiver.dedupe.index import ContentIndex
from service.receiver.head import Head
from service.receiver.manifest import Manifest, point_root
from service.receiver.patches import Patches, blocks_and_patches
from service.receiver.points import PointArchive
from service.receiver.rows import PointRows, agree_with, highest_epochs
from service.receiver.session import PushSession, SessionRegistry
from service.receiver.standing import Standing

IDLE_SECONDS = 300.0
"""After so long without a request a session's volumes are closed; what it sent is kept."""
COMMIT_PATIENCE_SECONDS = 100.0
"""How long a commit waits for another of the same server; agents give an answer 120 s."""
DEFAULT_RESERVE_BYTES = 256 << 20
"""Space that pushes leave free at the site, so that the database and running instances can go on."""

SEGMENTS_AT_ONCE = 16_384
"""Of 64 MiB each: half a MiB of digests, for which the receiver hashes 512 MiB of its map."""

log = logging.getLogger(__name__)


class Receiver:
    """`folder` is for caches; all that must survive lies at the site. Without an `index` nothing is deduplicated."""

    def __init__(
        self,
        site: Site,
        archive: PointArchive,
        rows: PointRows,
        folder: Path,
        *,
        index: ContentIndex | None = None,
        reserve_bytes: int = DEFAULT_RESERVE_BYTES,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.archive = archive
        self.sessions = SessionRegistry()
        self.dedupe = Dedupe(index, site, archive, rows, self.sessions, self._check_space)
        self._site = site
        self._rows = rows
        self._reserve_bytes = reserve_bytes
        self._now = now
        self._patches = Patches()
        self._standing = Standing(site, archive, folder)

    def recover(self) -> dict[str, int]:
        """At start: end what a crash cut, and make the rows say what the site holds. Returns the highest epoch of each
        server's points."""
        manifests = self.archive.recover()
        if not manifests:
            self.dedupe.begin_empty()
        agree_with(self._rows, manifests, self._rows.listed(), remove_others=True)
        return highest_epochs(manifests)

    # --- push ---

    def begin(self, server_id: str, authorize: Callable[[], Server], request: BeginRequest) -> BeginReply:
        """Open a session. `authorize` says whether this machine may push now; it is asked with the server's lock held,
        so that a failover is either before or after. Raises VolumeBusy, BadMessage, StorageFull, StorageError, and
        what `authorize` raises."""
        grids = grids_of(request.volumes)
        with self.sessions.locked_soon(server_id):
            server = authorize()
            previous = self.sessions.check_may_begin(server.id, request.machine_id, request.supersedes)
            if previous is not None:
                own = previous.id == request.supersedes
                self.close_session(previous, f"push of machine {request.machine_id} took over", remember=not own)
            self._check_space(sum(grid.count for grid in grids) * DIGEST_BYTES)  # what the maps will take at once
            self.finish_interrupted(server.id)
            session = self.open_session(new_point_id(), server, request.machine_id, request.volumes, grids)
            session.offers = self.dedupe.may_copy(session)
            standing = [VolumeStanding(root=head.digests.root().hex(), point=session.parent) for head in session.heads]
        log.info("push %s of %s begins", session.id, server.name)
        return BeginReply(
            session=session.id,
            epoch=server.epoch,
            volumes=standing,
            offers=session.offers,
            requests=self.sessions.requests_each(),
        )

    def segments(self, server_id: str, session_id: str, volume: int, first: int) -> bytes:
        """What the working state holds, as digests of segments from `first` on, as many as fit an answer."""
        session = self.sessions.get(session_id, server_id)
        if first < 0:
            raise BadMessage(f"there is no segment {first}")
        with session.request():
            return _head(session, volume).digests.segments(first, SEGMENTS_AT_ONCE)

    def offer(
        self, server_id: str, session_id: str, volume: int, body: bytes | bytearray, *, with_sums: bool = False
    ) -> bytes:
        """One Answer byte for each block offered; behind them the page sums of blocks that differ."""
        session = self.sessions.get(session_id, server_id)
        frame = decode_single(body, Kind.OFFER)
        with session.request():
            answers = bytearray(_head(session, volume).offer(frame))
            self.dedupe.copy(session, volume, frame, answers)
            sums = self._patches.sums(_head(session, volume), frame, answers) if with_sums else b""
        return bytes(answers) + sums

    def blocks(self, server_id: str, session_id: str, volume: int, body: bytes | bytearray) -> BlocksReply:
        session = self.sessions.get(session_id, server_id)
        frames = blocks_and_patches(body)
        self._check_space()
        written, mismatched = 0, list[int]()
        with session.request():
            head = _head(session, volume)
            for frame in frames:
                if frame.kind is Kind.BLOCKS:
                    written += head.write(frame)
                else:
                    patched, mismatched = self._patches.apply(head, frame)
                    written += patched
                if not mismatched:
                    self.dedupe.note(session, volume, frame)
        session.offers = session.offers or self.dedupe.has_others(session)
        return BlocksReply(
            written_blocks=written,
            mismatched=mismatched,
            offers=session.offers,
            requests=self.sessions.requests_each(),
        )

    def commit(
        self, server_id: str, session_id: str, authorize: Callable[[str], Server], request: CommitRequest
    ) -> Point:
        """Make the recovery point, or raise RootMismatch and leave everything as it is. Repeating gives the same: while
        the first try is at work the next ones wait for it, and after a while raise VolumeBusy.

        `authorize` is asked again, with the machine's id: the server may have been failed over meanwhile."""
        with self.sessions.locked_soon(server_id, COMMIT_PATIENCE_SECONDS):
            session = self.sessions.current(server_id)
            if session is None or session.id != session_id:
                self.finish_interrupted(server_id)  # a try before may have failed when there was no way back any more
            if self.archive.exists(server_id, session_id):
                return self.archive.manifest(server_id, session_id).point
            session = self.sessions.get(session_id, server_id)
            authorize(session.machine_id)
            return self.commit_session(session, request).point

    def fence(self, server_id: str, because: str) -> None:
        """Take nothing more from whoever is pushing this server now."""
        with self.sessions.server_lock(server_id):
            session = self.sessions.current(server_id)
            if session is not None:
                self.close_session(session, because)

    def abandon(self, server_id: str, session_id: str, because: str) -> None:
        """The agent gives up: what it sent is kept for its next try."""
        with self.sessions.locked_soon(server_id):
            self.close_session(self.sessions.get(session_id, server_id), because)

    def close_idle(self) -> None:
        """Close sessions nobody has used for long. Their agents ask again and begin anew."""
        for session in self.sessions.all(lambda session: session.idle_seconds() > IDLE_SECONDS):
            with self.sessions.server_lock(session.server_id):
                if session.idle_seconds() > IDLE_SECONDS:
                    self.close_session(session, "it was silent for long", remember=False)

    def close(self) -> None:
        """End all sessions: the service stops."""
        for session in self.sessions.all():
            with self.sessions.server_lock(session.server_id):
                self.close_session(session, "the service was stopped", remember=False)
        self._standing.close()
        self.dedupe.close()

    # --- what pushes and captures share; callers hold the server's lock ---

    def open_session(
        self,
        point_id: str,
        server: Server,
        machine_id: str,
        volumes: list[VolumeDeclaration],
        grids: list[BlockGrid],
        *,
        however_long: bool = False,
    ) -> PushSession:
        """Open every volume's working state on top of the newest point. Raises VolumeBusy where that has to be read
        back and takes longer than an agent waits, unless it may take `however_long`."""
        newest = next(iter(self._rows.newest_first(server.id)), None)
        heads = self._standing.open(server.id, grids, however_long=however_long)
        session = PushSession(
            id=point_id,
            server_id=server.id,
            server_name=server.name,
            tenant=server.tenant,
            epoch=server.epoch,
            machine_id=machine_id,
            declared=volumes,
            heads=heads,
            parent=newest.id if newest else None,
        )
        self.sessions.add(session)
        return session

    def commit_session(self, session: PushSession, request: CommitRequest) -> Manifest:
        """Compare roots and make the point. Until the manifest is prepared a failure leaves the session open."""
        if len(request.roots) != len(session.heads):
            raise BadMessage(f"{len(request.roots)} roots cannot commit {len(session.heads)} volumes")
        check_commit(request)
        if any(head.doubtful for head in session.heads):
            self.close_session(session, "a write failed half way, so what it holds must be read back", remember=False)
            raise SessionUnknown(f"push {session.id} ended: a write to the replica failed half way")
        with session.committing():
            for head in session.heads:
                head.flush()
            roots = [head.digests.root() for head in session.heads]
            for declared, asked, found in zip(session.declared, request.roots, roots, strict=True):
                if asked != found.hex():
                    raise RootMismatch(f"{declared.path}: the receiver holds {found.hex()[:16]}, not {asked[:16]}")
            manifest = Manifest(
                point=self._point(session, request, roots),
                server_id=session.server_id,
                tenant=session.tenant,
                parent=session.parent,
            )
            manifest = self.archive.prepare(manifest, [head.digests for head in session.heads])
            session.finish()
        # From here on there will be a point: if this fails, the next push or start carries it on.
        try:
            for head in session.heads:
                self._patches.forget(head)
                head.close()
            self.archive.complete(manifest)
            self._rows.add(manifest)
        finally:
            self.sessions.drop(session, "it was committed", remember=False)
            self.dedupe.point_was_made(session.server_id)
        log.info("point %s of %s: root %s", session.id, session.server_name, manifest.point.root)
        return manifest

    def close_session(self, session: PushSession, because: str, *, remember: bool = True) -> None:
        """End it without a point. What it brought stays in the working state."""
        session.end(because)
        for head in session.heads:
            try:
                head.flush()  # only now does the disk say whether it kept what was written
                proven = not head.doubtful
            except StorageError as error:
                log.warning("volume %d of %s has to be read back: %s", head.key.index, session.server_name, error)
                proven = False
            self._patches.forget(head)
            head.close()
            if proven:
                self._standing.keep(head)
        self.sessions.drop(session, because, remember=remember)
        log.info("push %s of %s ended: %s", session.id, session.server_name, because)

    def finish_interrupted(self, server_id: str) -> None:
        """Carry on what a crash or a full disk cut, so that the newest point is what the next push builds on."""
        agree_with(self._rows, self.archive.recover(server_id), self._rows.listed(server_id))

    def _point(self, session: PushSession, request: CommitRequest, roots: list[bytes]) -> Point:
        taken_at = datetime.fromtimestamp(self._now(), UTC) - timedelta(seconds=max(0.0, request.age_seconds))
        return Point(
            id=session.id,
            server=session.server_name,
            taken_at=taken_at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            consistency=one_of(request.consistency, ("crash", "application"), "consistency"),
            completeness=one_of(request.completeness, ("tracked", "scanned"), "completeness"),
            root=point_root(roots).hex(),
            size_bytes=sum(volume.size_bytes for volume in session.declared),
            sent_bytes=request.sent_bytes,
            epoch=session.epoch,
            label=request.label,
            volumes=[
                PointVolume(path=v.path, size_bytes=v.size_bytes, block_bytes=v.block_bytes, root=root.hex())
                for v, root in zip(session.declared, roots, strict=True)
            ],
        )

    def _check_space(self, needed_bytes: int = 0) -> None:
        free, wanted = self._site.free_bytes(), self._reserve_bytes + needed_bytes
        if free < wanted:
            more = f", and this push needs {needed_bytes >> 20} MiB for its digests" if needed_bytes >> 20 else ""
            raise StorageFull(
                f"the recovery site has {free >> 20} MiB left; {self._reserve_bytes >> 20} MiB stay in reserve{more}"
            )


def new_point_id() -> str:
    """`pt-` and ten characters that are hard to mistake for one another when read out on a telephone."""
    return "pt-" + "".join(secrets.choice("23456789abcdefghjkmnpqrstuvwxyz") for _ in range(10))


def _head(session: PushSession, volume: int) -> Head:
    if not 0 <= volume < len(session.heads):
        raise NotFound(f"push {session.id} has no volume {volume}")
    return session.heads[volume]
