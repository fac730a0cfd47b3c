"""Copies: what of an offer the tenant holds elsewhere is read there, proven by its digest, and written."""

from __future__ import annotations

import contextlib
import logging
import mmap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from agent.protocol.digests import DIGEST_BYTES, block_digest
from agent.protocol.errors import NotFound, SessionError, UnderstudyError
from agent.protocol.frames import Answer, Frame
from agent.protocol.grid import BlockGrid, consecutive
from service.receiver.dedupe.index import ContentIndex, Place
from service.receiver.dedupe.sources import Sources
from service.receiver.head import Head
from service.receiver.session import PushSession

RUN_BYTES = 4 << 20
"""Read at once, into memory that each thread keeps."""
CHECK_BYTES = 64 << 20
"""Copied between two looks at the space that is left."""
QUIET_SECONDS = 60.0
"""Between two lines in the log about sources that cannot be read."""

log = logging.getLogger(__name__)


class _Readable(Protocol):
    @property
    def grid(self) -> BlockGrid: ...

    def read_into(self, blocks: range, into: memoryview) -> None: ...


@dataclass(slots=True)
class _Run:
    """Blocks that follow one another in the frame and on the target, whose hints follow one another on a source."""

    positions: range
    first: Place
    holder: PushSession | None
    """The push whose working state has them, by its digest map; else they may be in the server's newest point."""

    def is_followed_by(self, position: int, place: Place, holder: PushSession | None, most_blocks: int) -> bool:
        return (
            position == self.positions.stop
            and len(self.positions) < most_blocks
            and place.block == self.first.block + len(self.positions)
            and (place.server_id, place.volume) == (self.first.server_id, self.first.volume)
            and holder is self.holder
        )


class Copies:
    """One for all servers. `session_of` tells which push of a server is under way.

    `copy` raises what `check_space` and writing to the head raise, and nothing that a source does."""

    def __init__(
        self,
        sources: Sources,
        session_of: Callable[[str], PushSession | None],
        check_space: Callable[[], None],
    ) -> None:
        self._sources = sources
        self._session_of = session_of
        self._check_space = check_space
        self._quiet_until = 0.0
        self._own = threading.local()

    def copy(self, index: ContentIndex, session: PushSession, volume: int, frame: Frame, answers: bytearray) -> None:
        """Write what is LACKING in `answers` and lies elsewhere in the tenant: it is COPIED from then on.

        To be called inside of one of the session's requests."""
        lacking = [position for position, answer in enumerate(answers) if answer == Answer.LACKING]
        head = session.heads[volume]
        wrong: list[tuple[bytes, Place]] = []
        unchecked_bytes = CHECK_BYTES
        places = index.find(session.tenant, [frame.digest(position) for position in lacking])
        hints = [(position, place) for position, place in zip(lacking, places, strict=True) if place is not None]
        for run in self._runs(session, head.grid, frame, hints):
            if unchecked_bytes >= CHECK_BYTES:
                self._check_space()
                unchecked_bytes = 0
            unchecked_bytes += len(run.positions) * head.grid.block_bytes
            proven = self._copy_run(session, head, frame, run)
            if proven is None:
                continue
            for position in run.positions:
                if position in proven:
                    answers[position] = Answer.COPIED
                else:
                    block = run.first.block + position - run.positions.start
                    wrong.append((frame.digest(position), Place(run.first.server_id, run.first.volume, block)))
        if wrong:
            index.drop(session.tenant, wrong)

    def _runs(
        self, session: PushSession, grid: BlockGrid, frame: Frame, hints: list[tuple[int, Place]]
    ) -> Iterator[_Run]:
        pushing = {server_id: self._session_of(server_id) for server_id in {place.server_id for _, place in hints}}
        pushing[session.server_id] = session
        most_blocks = RUN_BYTES // grid.block_bytes
        run: _Run | None = None
        for position, place in hints:
            holder = _holder(pushing[place.server_id], session.tenant, grid, place, frame.digest(position))
            follows = position > 0 and frame.indices[position - 1] + 1 == frame.indices[position]
            if run is not None and follows and run.is_followed_by(position, place, holder, most_blocks):
                run.positions = range(run.positions.start, position + 1)
            else:
                if run is not None:
                    yield run
                run = _Run(range(position, position + 1), place, holder)
        if run is not None:
            yield run

    def _copy_run(self, session: PushSession, head: Head, frame: Frame, run: _Run) -> set[int] | None:
        """The positions that were proven and written; None if the source cannot be read now."""
        proven = self._copy_from(session, head, frame, run)
        if run.holder is None or (proven is not None and len(proven) == len(run.positions)):
            return proven
        # That push has ended by now, or they were overwritten, perhaps by this very frame: a point may have them.
        in_point = self._copy_from(session, head, frame, replace(run, holder=None))
        return None if in_point is None else (proven or set()) | in_point

    def _copy_from(self, session: PushSession, head: Head, frame: Frame, run: _Run) -> set[int] | None:
        try:
            content = self._read(session, head.grid, run)
        except NotFound:
            return set()
        except UnderstudyError as error:
            if not isinstance(error, SessionError) and time.monotonic() >= self._quiet_until:
                self._quiet_until = time.monotonic() + QUIET_SECONDS
                log.warning("what could be copied from %s is sent: %s", run.first.server_id, error)
            return None
        proven = []
        for position in run.positions:
            at = (position - run.positions.start) * head.grid.block_bytes
            length = head.grid.length(frame.indices[position])
            block = content[at : at + length]
            if len(block) == length and block_digest(block) == frame.digest(position):
                proven.append(position)
        for start, stop in consecutive(tuple(proven)):
            first, last = proven[start], proven[stop - 1]
            blocks = range(frame.indices[first], frame.indices[last] + 1)
            at = (first - run.positions.start) * head.grid.block_bytes
            digests = frame.digests[first * DIGEST_BYTES : (last + 1) * DIGEST_BYTES]
            head.take(blocks, digests, content[at : at + head.grid.span(blocks)[1]])
        return set(proven)

    def _read(self, session: PushSession, grid: BlockGrid, run: _Run) -> memoryview:
        """What the source has where the hints say; shorter where the source ends. Raises UnderstudyError."""
        place = run.first
        with contextlib.ExitStack() as reading:
            if run.holder is None:
                source: _Readable = reading.enter_context(
                    self._sources.reading(session.tenant, place.server_id, place.volume)
                )
            else:
                if run.holder is not session:  # whose request we are in already
                    reading.enter_context(run.holder.visit())
                source = run.holder.heads[place.volume]
            stop = min(place.block + len(run.positions), source.grid.count)
            if source.grid.block_bytes != grid.block_bytes or place.block >= stop:
                return memoryview(b"")
            blocks = range(place.block, stop)
            content = self._buffer()[: source.grid.span(blocks)[1]]
            source.read_into(blocks, content)
            return content

    def _buffer(self) -> memoryview:
        """This thread's own: page-aligned memory is filled by the disk itself."""
        buffer: memoryview | None = getattr(self._own, "buffer", None)
        if buffer is None:
            buffer = self._own.buffer = memoryview(mmap.mmap(-1, RUN_BYTES))
        return buffer


def _holder(
    pushing: PushSession | None, tenant: str, grid: BlockGrid, place: Place, digest: bytes
) -> PushSession | None:
    """The push under way, if its working state should have the block: it may not be in the server's point yet."""
    if pushing is None or pushing.tenant != tenant or place.volume >= len(pushing.heads):
        return None
    head = pushing.heads[place.volume]
    if head.grid.block_bytes != grid.block_bytes or place.block >= head.grid.count:
        return None
    try:
        return pushing if head.digests[place.block] == digest else None
    except ValueError:  # it was closed meanwhile
        return None
