"""Refill: the index is a cache of what the points hold, and can be made from them again."""

from __future__ import annotations

import contextlib
import logging
import threading

from agent.protocol.errors import UnderstudyError
from recovery.sites.contract import Site
from service.receiver.dedupe.index import ContentIndex
from service.receiver.dedupe.sources import Sources
from service.receiver.points import PointArchive

_PIECE_BLOCKS = 4096

log = logging.getLogger(__name__)


def refill(index: ContentIndex, site: Site, archive: PointArchive, sources: Sources, stop: threading.Event) -> None:
    """Enter every server's newest point. Cut off by `stop`, it will be wanted again."""
    index.begin_refill()
    for server_id in sorted({key.server_id for key in site.volumes()}):
        try:
            manifest = sources.newest(server_id)
            for volume in range(len(manifest.point.volumes)):
                with contextlib.closing(archive.digests(manifest, volume)) as digests:
                    for blocks in digests.grid.pieces(_PIECE_BLOCKS):
                        if stop.is_set():
                            return
                        index.add(manifest.tenant, server_id, volume, blocks, digests.run(blocks))
        except UnderstudyError as error:  # no point yet, or it was removed or damaged meanwhile
            log.info("nothing of %s enters the dedupe index: %s", server_id, error)
    index.end_refill()
    log.info("the dedupe index knows %d blocks", index.entries)
