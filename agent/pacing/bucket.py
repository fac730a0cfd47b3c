"""The token bucket, and whose turn it is. Pure: no clock, no waiting; `now` is seconds by any monotonic clock."""

from __future__ import annotations

import heapq
import itertools

BURST_SECONDS = 0.1
"""What a line that was quiet may send at once: so much time's worth."""


class TokenBucket:
    """Fills at `rate` bytes a second. Whoever takes more than there is leaves a debt, and the next one waits for it."""

    def __init__(self, rate: float | None, now: float) -> None:
        self._rate = rate
        self._tokens_bytes = 0.0
        self._filled_at = now

    @property
    def rate(self) -> float | None:
        """None: no limit."""
        return self._rate

    def set_rate(self, rate: float | None, now: float) -> None:
        """What was saved up or owed before stays."""
        self._fill(now)
        self._rate = rate

    def wait_seconds(self, now: float) -> float:
        """How long until somebody may take; 0: now."""
        self._fill(now)
        if self._rate is None or self._tokens_bytes >= 0:
            return 0.0
        return -self._tokens_bytes / self._rate

    def take(self, size_bytes: int, now: float) -> None:
        self._fill(now)
        if self._rate is not None:
            self._tokens_bytes -= size_bytes

    def _fill(self, now: float) -> None:
        if self._rate is None:
            self._tokens_bytes = 0.0
        else:
            gained = (now - self._filled_at) * self._rate
            self._tokens_bytes = min(self._tokens_bytes + gained, self._rate * BURST_SECONDS)
        self._filled_at = now


Ticket = tuple[float, int]


class Turns:
    """An order in which each taker that always wants more gets the same share of bytes, however many requests it has
    waiting (start-time fair queueing)."""

    def __init__(self) -> None:
        self._waiting: list[Ticket] = []
        self._served_to = 0.0
        self._asked_to: dict[str, float] = {}
        self._numbers = itertools.count()

    def ask(self, taker: str, size_bytes: int) -> Ticket:
        """Queue up; what comes back is compared with `first`."""
        start = max(self._served_to, self._asked_to.get(taker, 0.0))
        self._asked_to[taker] = start + size_bytes
        ticket = (start, next(self._numbers))
        heapq.heappush(self._waiting, ticket)
        return ticket

    @property
    def first(self) -> Ticket | None:
        return self._waiting[0] if self._waiting else None

    def leave(self, ticket: Ticket) -> None:
        """It was served, or does not want to be any more."""
        if ticket == self.first:
            heapq.heappop(self._waiting)
            self._served_to = ticket[0]
        else:
            self._waiting.remove(ticket)
            heapq.heapify(self._waiting)
        if not self._waiting:  # nobody has a share to defend, and takers' names need not be kept for ever
            self._asked_to.clear()
            self._served_to = 0.0
