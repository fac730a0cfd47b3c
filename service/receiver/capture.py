"""Capture: a push whose source is a stopped instance at the site. It ends in the same commit as any push."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from blake3 import blake3

from agent.protocol.digests import DigestMap
from agent.protocol.errors import Conflict
from agent.protocol.grid import BlockGrid
from agent.protocol.messages import CommitRequest, VolumeDeclaration
from recovery.control import Server
from recovery.sites.contract import Site
from service.receiver.head import Head
from service.receiver.points import PointArchive
from service.receiver.receiver import Receiver
from service.receiver.rows import PointRows
from service.receiver.session import SessionState

_SCAN_BLOCKS = 1024


def capture(
    receiver: Receiver, site: Site, rows: PointRows, server: Server, instance_id: str, label: str, request_id: str
) -> str:
    """A point of a stopped instance's volumes; returns its id, which follows from `request_id`: repeating is harmless.

    Only what may differ from the newest point is read: where the instance wrote since it was launched, and where the
    point that it was launched from differs from the newest. Raises Conflict while the instance runs."""
    point_id = "pt-" + blake3(request_id.encode()).hexdigest()[:10]
    archive = receiver.archive
    with receiver.sessions.server_lock(server.id):
        receiver.finish_interrupted(server.id)
        if archive.exists(server.id, point_id):
            return point_id
        pushing = receiver.sessions.current(server.id)
        if pushing is not None:
            receiver.close_session(pushing, "the server was shut down to go home")
        launched_from = site.watch(instance_id).points
        volumes = [
            VolumeDeclaration(path=volume.path, size_bytes=volume.size_bytes, block_bytes=volume.block_bytes)
            for volume in archive.manifest(server.id, launched_from[0]).point.volumes
        ]
        grids = [BlockGrid(volume.size_bytes, volume.block_bytes) for volume in volumes]
        session = receiver.open_session(point_id, server, instance_id, volumes, grids, however_long=True)
        try:
            for index, head in enumerate(session.heads):
                _capture_volume(archive, site, instance_id, launched_from[index], index, head)
            receiver.commit_session(
                session,
                CommitRequest(
                    roots=[head.digests.root().hex() for head in session.heads],
                    consistency="crash",
                    completeness="tracked",
                    age_seconds=0.0,
                    label=label,
                ),
            )
        finally:
            if session.state is not SessionState.ENDED:
                receiver.close_session(session, "the capture failed", remember=False)
    return point_id


def _capture_volume(
    archive: PointArchive, site: Site, instance_id: str, launched_from: str, index: int, head: Head
) -> None:
    grid = head.grid
    launched = archive.digests(archive.manifest(head.key.server_id, launched_from), index)
    if launched.grid != grid:
        raise Conflict(f"volume {index} has another size than point {launched_from}", "export that point instead")
    extents = ((extent.offset, extent.length) for extent in site.instance_changes(instance_id, index))
    written = grid.covering(extents, _SCAN_BLOCKS)
    with contextlib.closing(launched), contextlib.closing(site.open_instance_volume(instance_id, index)) as io:
        for block in _suspects(written, launched, head.digests):
            head.put(block, io.read(grid.offset(block), grid.length(block)))


def _suspects(written: Iterator[range], launched: DigestMap, held: DigestMap) -> Iterator[int]:
    """Blocks that may differ from what is held: those in `written`, which rises, and those that were launched with
    another content."""
    pending = next(written, None)
    for blocks in launched.grid.pieces(_SCAN_BLOCKS):
        found: set[int] = set()
        while pending is not None and pending.start < blocks.stop:
            found.update(range(max(pending.start, blocks.start), min(pending.stop, blocks.stop)))
            if pending.stop > blocks.stop:
                break
            pending = next(written, None)
        if launched.run(blocks) != held.run(blocks):
            found.update(block for block in blocks if launched[block] != held[block])
        yield from sorted(found)
