"""Push sessions: who is pushing which server, and what is under way. No I/O here, only the rules."""

from __future__ import annotations

import contextlib
import enum
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from agent.protocol.errors import SessionUnknown, Superseded, VolumeBusy
from agent.protocol.messages import MAX_REQUESTS, VolumeDeclaration
from service.receiver.head import Head

SILENCE_SECONDS = 10.0
"""How long a session must have been silent before a stranger with the same identity may take over."""

LOCK_PATIENCE_SECONDS = 10.0
"""How long an agent's request waits for a server's lock. Threads are few, and all servers' requests share them."""


REQUESTS_OF_ALL = 64
"""A line whose body waits takes more than a MiB of memory, for TLS."""
LEAST_REQUESTS = 2
"""One that is on its way while the other is written; our agents send both on one line."""


class SessionState(enum.StrEnum):
    OPEN = "open"
    COMMITTING = "committing"
    ENDED = "ended"


@dataclass
class PushSession:
    """One push of all volumes of one server. Its id becomes the recovery point's."""

    id: str
    server_id: str
    server_name: str
    tenant: str
    epoch: int
    machine_id: str
    declared: list[VolumeDeclaration]
    heads: list[Head]
    parent: str | None
    offers: bool = True
    """Something may be copied into its volumes from elsewhere in the tenant."""
    state: SessionState = SessionState.OPEN
    active_at: float = field(default_factory=time.monotonic)
    ended_because: str = ""
    _requests: int = 0
    _changed: threading.Condition = field(default_factory=threading.Condition)

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        """Every request that writes runs inside; a commit waits for those that are inside and keeps others out."""
        with self._changed:
            self._check_open()
            self._requests += 1
            self.active_at = time.monotonic()
        try:
            yield
        finally:
            with self._changed:
                self._requests -= 1
                self.active_at = time.monotonic()
                self._changed.notify_all()

    @contextlib.contextmanager
    def visit(self) -> Iterator[None]:
        """Somebody else reads its volumes, which stay open meanwhile: no activity of its agent."""
        with self._changed:
            self._check_open()
            self._requests += 1
        try:
            yield
        finally:
            with self._changed:
                self._requests -= 1
                self._changed.notify_all()

    @contextlib.contextmanager
    def committing(self) -> Iterator[None]:
        """Keep new requests out, wait for those inside. If the commit fails the session is open again."""
        with self._changed:
            self._check_open()
            self.state = SessionState.COMMITTING
            self._changed.wait_for(lambda: self._requests == 0)
        try:
            yield
        finally:
            with self._changed:
                self.active_at = time.monotonic()
                if self.state is SessionState.COMMITTING:
                    self.state = SessionState.OPEN
                self._changed.notify_all()

    def end(self, because: str) -> None:
        """No request gets in any more; returns when none is inside."""
        with self._changed:
            self._changed.wait_for(lambda: self.state is not SessionState.COMMITTING)
            self.state = SessionState.ENDED
            self.ended_because = self.ended_because or because
            self._changed.wait_for(lambda: self._requests == 0)

    def finish(self) -> None:
        """The commit succeeded."""
        self.state = SessionState.ENDED
        self.ended_because = "it was committed"

    def idle_seconds(self) -> float:
        """0 while a request is inside."""
        with self._changed:
            return 0.0 if self._requests or self.state is SessionState.COMMITTING else time.monotonic() - self.active_at

    def _check_open(self) -> None:
        if self.state is SessionState.COMMITTING:
            raise VolumeBusy(f"push {self.id} is being committed", "ask again in a moment")
        if self.state is SessionState.ENDED:
            raise Superseded(f"push {self.id} of {self.server_name} has ended: {self.ended_because}")


class SessionRegistry:
    """At most one open session a server."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of_server: dict[str, PushSession] = {}
        self._ended: dict[str, str] = {}
        self._server_locks: dict[str, threading.Lock] = {}

    def server_lock(self, server_id: str) -> threading.Lock:
        """Held while a server's heads are opened, committed, merged or captured: one of these at a time."""
        with self._lock:
            return self._server_locks.setdefault(server_id, threading.Lock())

    @contextlib.contextmanager
    def locked_soon(self, server_id: str, patience_seconds: float | None = None) -> Iterator[None]:
        """The same lock for agents' requests. Raises VolumeBusy where it is held for longer than `patience_seconds`."""
        lock = self.server_lock(server_id)
        if not lock.acquire(timeout=LOCK_PATIENCE_SECONDS if patience_seconds is None else patience_seconds):
            raise VolumeBusy(
                "the receiver is busy with this server's replica: it makes a point, removes old ones, or captures an "
                "instance",
                "it ends by itself, and then pushes go on",
            )
        try:
            yield
        finally:
            lock.release()

    def get(self, session_id: str, server_id: str) -> PushSession:
        """Raises SessionUnknown, also for another server's session; Superseded if somebody took over."""
        with self._lock:
            session = self._of_server.get(server_id)
            if session is not None and session.id == session_id:
                return session
            if session_id in self._ended:
                raise Superseded(f"push {session_id} has ended: {self._ended[session_id]}")
        raise SessionUnknown(f"the receiver knows no push {session_id}")

    def current(self, server_id: str) -> PushSession | None:
        with self._lock:
            return self._of_server.get(server_id)

    def check_may_begin(self, server_id: str, machine_id: str, supersedes: str | None) -> PushSession | None:
        """The session that ends when a new one begins, if any. Raises VolumeBusy if it may not end yet."""
        session = self.current(server_id)
        if session is None or session.id == supersedes:
            return session
        silent = session.idle_seconds()
        if silent < SILENCE_SECONDS:
            raise VolumeBusy(
                f"{session.server_name} is being pushed already (push {session.id}, machine {session.machine_id}, "
                f"active {silent:.0f} s ago)"
            )
        return session

    def add(self, session: PushSession) -> None:
        with self._lock:
            self._of_server[session.server_id] = session

    def drop(self, session: PushSession, because: str, *, remember: bool = True) -> None:
        """Forget a session that has ended. `remember`: tell late requests why."""
        with self._lock:
            if self._of_server.get(session.server_id) is session:
                del self._of_server[session.server_id]
            if remember:
                self._ended[session.id] = because
                while len(self._ended) > 1000:
                    self._ended.pop(next(iter(self._ended)))

    def alone(self, session: PushSession) -> bool:
        """Is nobody else of the same tenant being pushed?"""
        with self._lock:
            return not any(other.tenant == session.tenant for other in self._of_server.values() if other is not session)

    def requests_each(self) -> int:
        """How many requests of one session may be under way, so that all of them need no more when they are many."""
        with self._lock:
            sessions = max(1, len(self._of_server))
        return max(LEAST_REQUESTS, min(MAX_REQUESTS, REQUESTS_OF_ALL // sessions))

    def all(self, wanted: Callable[[PushSession], bool] = lambda _: True) -> list[PushSession]:
        with self._lock:
            return [session for session in self._of_server.values() if wanted(session)]
