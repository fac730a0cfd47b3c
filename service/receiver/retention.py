"""Retention: which points go, and their removal. For now: the newest N stay, and what is in use."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Protocol

from agent.protocol.errors import Conflict, NotFound, StorageError, UnderstudyError
from service.receiver.receiver import Receiver
from service.receiver.rows import PointRows

log = logging.getLogger(__name__)


class CountedRows(PointRows, Protocol):
    def servers_with_more_than(self, count: int) -> Iterable[str]:
        """The ids of servers that have more than `count` points."""
        ...


class Claims(Protocol):
    """What says which points runs need."""

    def claim(self, point_id: str) -> AbstractContextManager[str | None]:
        """Gives the run that needs the point, or None: then no run begins with it until the block ends."""
        ...


def superfluous(newest_first: list[str], keep: int) -> list[str]:
    """The points to remove, oldest first. At least one always stays."""
    return newest_first[max(keep, 1) :][::-1]


class Retention:
    """`keep` is how many points a server has when nothing is in the way."""

    def __init__(self, receiver: Receiver, rows: CountedRows, claims: Claims, keep: int) -> None:
        self._receiver = receiver
        self._rows = rows
        self._claims = claims
        self._keep = keep
        self._held: dict[str, dict[str, str]] = {}

    def why_held(self, point_id: str) -> str | None:
        """Why a point is still there though there are newer ones enough, as of the last look; None if there are not."""
        return next((held[point_id] for held in self._held.values() if point_id in held), None)

    def retain_all(self) -> None:
        servers = list(self._rows.servers_with_more_than(self._keep))
        self._held = {server_id: held for server_id, held in self._held.items() if server_id in servers}
        for server_id in servers:
            try:
                self.retain(server_id)
            except UnderstudyError as error:  # one server's damage is no reason to let the others' points pile up
                log.warning("points of %s are not removed: %s", server_id, error)

    def retain(self, server_id: str) -> list[str]:
        """Remove what is superfluous; returns what was removed. What is in use stays until the next time."""
        receiver = self._receiver
        with receiver.sessions.server_lock(server_id):
            wanted = superfluous([point.id for point in self._rows.newest_first(server_id)], self._keep)
            if receiver.sessions.current(server_id) is not None:
                # the chain is open for writing; after the commit there is another chance
                self._held[server_id] = dict.fromkeys(wanted, "a push is under way; it goes after that")
                return []
            if wanted:
                receiver.dedupe.release(server_id)
            held = {point_id: reason for point_id in wanted if (reason := self._remove(server_id, point_id))}
            self._tell(server_id, held)
            removed = [point_id for point_id in wanted if point_id not in held]
            if removed:
                receiver.archive.recover(server_id)  # lets go of digests that nothing needs any more
        return removed

    def _remove(self, server_id: str, point_id: str) -> str | None:
        """Returns why it stays, or None."""
        archive = self._receiver.archive
        with self._claims.claim(point_id) as run_id:
            if run_id is not None:
                return f"run {run_id} needs it, until that is ended"
            try:
                archive.remove(server_id, point_id)
            except (Conflict, NotFound, StorageError) as error:
                if not archive.exists(server_id, point_id):
                    self._rows.remove(point_id)  # one of its volumes is gone already; the rest goes another time
                return str(error)
            self._rows.remove(point_id)
        log.info("point %s removed: more than %d are kept", point_id, self._keep)
        return None

    def _tell(self, server_id: str, held: dict[str, str]) -> None:
        before = self._held.get(server_id, {})
        for point_id, reason in held.items():
            if before.get(point_id) != reason:  # every few seconds the same would be no news
                log.info("point %s stays for now: %s", point_id, reason)
        self._held[server_id] = held
