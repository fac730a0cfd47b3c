"""The pace of one push: waits in the threads that send, by a limit that may change meanwhile.

    pace = Pace(state.folder)
    for part in pace.parts(body, taker=path): send(part)

What one request carries is let through in slices, so that a slow line sees a steady stream and not a burst of MiBs
followed by silence. The settings' file is looked at twice a second, so a change holds at once.
"""

from __future__ import annotations

import datetime
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from agent.pacing.bucket import TokenBucket, Turns
from agent.pacing.rate import Limit
from agent.pacing.settings import FILE, load
from agent.protocol.errors import UsageError

NOTICE_SECONDS = 0.5
SLICE_SECONDS = 0.05
_LEAST_SLICE_BYTES, _MOST_SLICE_BYTES = 4 << 10, 256 << 10

Buffer = bytes | bytearray | memoryview

log = logging.getLogger("understudy-agent")


class Pace:
    """For many threads. `close` lets everybody go who waits."""

    def __init__(
        self,
        folder: Path,
        clock: Callable[[], float] = time.monotonic,
        time_of_day: Callable[[], datetime.time] = lambda: datetime.datetime.now().time(),
    ) -> None:
        """`folder` is the agent's state folder. `time_of_day` is the server's local time."""
        self._path = folder / FILE
        self._clock = clock
        self._time_of_day = time_of_day
        self._changed = threading.Condition()
        self._turns = Turns()
        self._closed = False
        self._limit: Limit | None = None
        self._seen: tuple[int, ...] | None = None
        self._looked_at = float("-inf")
        self._bucket = TokenBucket(None, clock())

    @property
    def rate(self) -> float | None:
        """Bytes a second that are allowed now; None: no limit. For who chooses the size of requests."""
        with self._changed:
            self._look()
            return self._bucket.rate

    def parts(self, body: Sequence[Buffer], taker: str = "") -> Iterator[Buffer]:
        """The same bytes, each slice when it may be sent. `taker`: those with the same name share one share."""
        for part in body:
            view = memoryview(part)
            while len(view):
                size = self._take_slice(len(view), taker)
                yield view[:size]
                view = view[size:]

    def take(self, size_bytes: int, taker: str = "") -> None:
        """Wait until so many bytes may be sent."""
        with self._changed:
            self._look()
            self._take(size_bytes, taker)

    def close(self) -> None:
        """The push is over: whoever waits goes on at once."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _take_slice(self, most: int, taker: str) -> int:
        """Wait until a slice may be sent, which is as long as the limit wants it that holds now: what went whole, and
        was charged to a limit that came in between, would keep everybody silent until the service gives us up."""
        with self._changed:
            self._look()
            rate = self._bucket.rate
            size = most
            if rate is not None:
                size = min(most, max(_LEAST_SLICE_BYTES, min(int(rate * SLICE_SECONDS), _MOST_SLICE_BYTES)))
            self._take(size, taker)
        return size

    def _take(self, size_bytes: int, taker: str) -> None:
        """The lock is held."""
        if self._bucket.rate is None or self._closed:
            return
        ticket = self._turns.ask(taker, size_bytes)
        try:
            while not self._closed:
                self._look()
                seconds = self._bucket.wait_seconds(self._clock())
                mine = ticket == self._turns.first
                if mine and seconds <= 0:
                    break
                self._changed.wait(min(seconds, NOTICE_SECONDS) if mine else NOTICE_SECONDS)
            self._bucket.take(size_bytes, self._clock())
        finally:
            self._turns.leave(ticket)
            self._changed.notify_all()

    def _look(self) -> None:
        """Take over what the settings say now; the file is read again only when it was changed."""
        now = self._clock()
        if now - self._looked_at < NOTICE_SECONDS:
            return
        self._looked_at = now
        try:
            found = self._path.stat()
            seen: tuple[int, ...] | None = (found.st_mtime_ns, found.st_ino, found.st_size)
        except OSError:
            seen = None  # nobody has set anything
        if seen != self._seen:
            self._seen = seen
            try:
                self._limit = load(self._path.parent).limit
                log.info("bandwidth limit: %s", self._limit or "none")
            except UsageError as error:
                log.warning("the bandwidth limit stays as it was: %s", error)
        rate = None if self._limit is None else self._limit.at(self._time_of_day())
        if rate != self._bucket.rate:
            self._bucket.set_rate(rate, now)
            self._changed.notify_all()
