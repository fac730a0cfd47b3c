"""Dedupe as the receiver sees it: what was written is noted, what is offered is copied where it can be."""

from __future__ import annotations

import threading
from collections.abc import Callable

from agent.protocol.frames import Answer, Frame
from recovery.sites.contract import Site
from service.receiver.dedupe.copies import Copies
from service.receiver.dedupe.index import ContentIndex
from service.receiver.dedupe.refill import refill
from service.receiver.dedupe.sources import Points, Sources
from service.receiver.points import PointArchive
from service.receiver.session import PushSession, SessionRegistry


class Dedupe:
    """Calls block, none for long. Without an index it does nothing. Does not close the index."""

    def __init__(
        self,
        index: ContentIndex | None,
        site: Site,
        archive: PointArchive,
        points: Points,
        sessions: SessionRegistry,
        check_space: Callable[[], None],
    ) -> None:
        self._index = index
        self._site = site
        self._archive = archive
        self._sources = Sources(archive, points, lambda server_id: sessions.server_lock(server_id).locked())
        self._sessions = sessions
        self._copies = Copies(self._sources, sessions.current, check_space)
        self._refilling: threading.Thread | None = None
        self._stop = threading.Event()

    def note(self, session: PushSession, volume: int, frame: Frame) -> None:
        """These blocks were written to a working state."""
        if self._index is not None:
            self._index.add(session.tenant, session.server_id, volume, frame.indices, frame.digests)

    def begin_empty(self) -> None:
        """There are no points, so there is nothing that the index would have to be filled from."""
        if self._index is not None:
            self._index.end_refill()

    def may_copy(self, session: PushSession) -> bool:
        """Does the tenant have anything that a push which begins could copy?"""
        if self._index is None:
            return False
        return self._index.wants_refill or self._index.knows(session.tenant) or self.has_others(session)

    def has_others(self, session: PushSession) -> bool:
        """Is anybody else of the same tenant pushing what could be copied?"""
        return self._index is not None and not self._sessions.alone(session)

    def copy(self, session: PushSession, volume: int, frame: Frame, answers: bytearray) -> None:
        """Turn LACKING into COPIED where the tenant has the block elsewhere. Inside of one of the session's requests.

        Raises what writing to the head raises, StorageFull."""
        if self._index is not None and Answer.LACKING in answers:
            self._copies.copy(self._index, session, volume, frame, answers)

    def point_was_made(self, server_id: str) -> None:
        """What was open as the server's newest point is so no more."""
        self._sources.retire(server_id)

    def release(self, server_id: str) -> None:
        """For the holder of the server's lock: let go of its volumes, so that points can be removed."""
        self._sources.release(server_id)

    def tend(self) -> None:
        """Close what nobody copies from any more, and see to the index. To be called now and then."""
        self._sources.close_idle()
        refilling = self._refilling is not None and self._refilling.is_alive()
        if self._index is not None and self._index.wants_refill and not refilling:
            self._refilling = threading.Thread(
                target=refill,
                args=(self._index, self._site, self._archive, self._sources, self._stop),
                name="dedupe-refill",
            )
            self._refilling.start()

    def close(self) -> None:
        """All sessions have ended."""
        self._stop.set()
        if self._refilling is not None:
            self._refilling.join()
        self._sources.close()
