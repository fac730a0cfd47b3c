"""Retention: which points go, and their removal. For now: the newest N stay."""

from __future__ import annotations

import logging

from agent.protocol.errors import Conflict
from service.receiver.receiver import PointRows, Receiver

DEFAULT_KEEP = 48

log = logging.getLogger(__name__)


def superfluous(newest_first: list[str], keep: int) -> list[str]:
    """The points to remove, oldest first. At least one always stays."""
    return newest_first[max(keep, 1) :][::-1]


def retain(receiver: Receiver, rows: PointRows, server_id: str, keep: int) -> list[str]:
    """Remove what is superfluous; returns what was removed. A point in use stays until the next time."""
    removed = []
    with receiver.sessions.server_lock(server_id):
        if receiver.sessions.current(server_id) is not None:
            return []  # the chain is open for writing; after the commit there is another chance
        for point_id in superfluous([point.id for point in rows.newest_first(server_id)], keep):
            try:
                receiver.archive.remove(server_id, point_id)
            except Conflict as conflict:
                log.info("point %s stays for now: %s", point_id, conflict.message)
                if not receiver.archive.exists(server_id, point_id):
                    rows.remove(point_id)  # one of its volumes is gone already
                break
            rows.remove(point_id)
            removed.append(point_id)
            log.info("point %s removed: more than %d are kept", point_id, keep)
    return removed
