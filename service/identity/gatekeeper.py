"""Who is calling, and what they may do: the certificate says which server, ownership whether it may push."""

from __future__ import annotations

import contextlib
import dataclasses
import ssl
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web

from agent.protocol.errors import AuthError, NotFound, StaleEpoch
from agent.protocol.messages import Point, PulledReport, VolumeDeclaration
from recovery.control import Server
from service.identity.as_server import server_of
from service.identity.enrolment import Enrolment, machine_of
from service.identity.ownership import Claim, Decision, StandDown, Take, claimed, decide, stood_down
from service.store.points import PointStore
from service.store.rows import CertificateRow, ServerRow
from service.store.servers import ServerStore

LATEST = "latest"
STALE_NOTED_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class AgentIdentity:
    """An agent, proven by its certificate, which neither is revoked nor has expired."""

    server_id: str
    tenant: str
    serial: str


AGENT = "understudy.agent"
"""Where the middleware leaves the identity in a request."""


class Gatekeeper:
    """All but `agent_of`, `serial_of`, `recognize` and `known_decision` block."""

    def __init__(
        self, enrolment: Enrolment, servers: ServerStore, points: PointStore, now: Callable[[], float] = time.time
    ) -> None:
        self._enrolment = enrolment
        self._servers = servers
        self._points = points
        self._now = now
        self._serials: weakref.WeakKeyDictionary[ssl.SSLObject, str] = weakref.WeakKeyDictionary()

    @staticmethod
    def agent_of(request: web.Request) -> AgentIdentity:
        """As the middleware found it. Raises AuthError where it did not look."""
        identity = request.get(AGENT)
        if not isinstance(identity, AgentIdentity):
            raise AuthError("this needs an agent's certificate", "enrol first: understudy-agent enroll URL TOKEN")
        return identity

    def serial_of(self, request: web.Request) -> str:
        """The serial of the certificate that the other end showed; TLS has checked it. Raises AuthError (none)."""
        connection: ssl.SSLObject | None = request.get_extra_info("ssl_object")
        if (
            connection is not None and connection in self._serials
        ):  # reading a certificate again for each request is dear
            return self._serials[connection]
        certificate = None
        with contextlib.suppress(ValueError):  # a connection that has broken since its request came knows none any more
            certificate = connection.getpeercert() if connection is not None else None
        if connection is None or not certificate:
            raise AuthError("this needs an agent's certificate", "enrol first: understudy-agent enroll URL TOKEN")
        serial = self._serials[connection] = f"{int(str(certificate['serialNumber']), 16):x}"
        return serial

    def identify(self, serial: str) -> AgentIdentity:
        """Raises TrustError (unknown), AuthError (revoked)."""
        certificate = self._enrolment.certificate(serial)
        return AgentIdentity(certificate.server_id, certificate.tenant, serial)

    def recognize(self, serial: str) -> AgentIdentity | None:
        """The same for one that was identified a moment ago, without asking the database; None: not remembered."""
        certificate = self._enrolment.remembered(serial)
        return None if certificate is None else AgentIdentity(certificate.server_id, certificate.tenant, serial)

    def authorize_push(self, server_id: str, machine_id: str, serial: str) -> Server:
        """The server, if this machine may push for it now; it becomes the owner where there is none.

        Raises StaleEpoch, AuthError, TrustError."""
        row, decision = self.admit(server_id, machine_id, serial, claims=True)
        if isinstance(decision, StandDown):
            raise StaleEpoch(decision.reason, decision.hint)
        return server_of(row, self._now())

    def admit(
        self,
        server_id: str,
        machine_id: str,
        serial: str,
        *,
        claims: bool,
        row: ServerRow | None = None,
        fenced: str | None = None,
    ) -> tuple[ServerRow, Decision]:
        """What this machine is to its server, and the server afterwards.

        `claims`: it wants to replicate, so it becomes the owner if it may (Take); else that stays open (Claim).
        `row`: the server, if the caller has just read it. `fenced`: what its agent says it has stopped."""
        machine_id = machine_of(machine_id)
        certificate = self._enrolment.certificate(serial)
        server = row or self._servers.get(server_id)
        decision = self._decided(server, machine_id, certificate)
        if isinstance(decision, Claim) and claims:
            return self._claim(server_id, machine_id, certificate)
        if isinstance(decision, StandDown) and (claims or decision.was_the_server):
            self._note_stale(server, machine_id, fenced)
        return server, decision

    def known_decision(self, server: ServerRow, machine_id: str, serial: str) -> Decision | None:
        """What this machine is to its server, without a look at the database; None: its certificate is not remembered.

        Raises BadMessage, AuthError."""
        certificate = self._enrolment.remembered(serial)
        if certificate is None:
            return None
        return self._decided(server, machine_of(machine_id), certificate)

    @staticmethod
    def _decided(server: ServerRow, machine_id: str, certificate: CertificateRow) -> Decision:
        if certificate.server_id != server.id:
            raise AuthError(f"the certificate {certificate.serial} is another server's")
        return decide(server, machine_id, certificate)

    def _note_stale(self, server: ServerRow, machine_id: str, fenced: str | None) -> None:
        """Operators see who came back. It asks every few seconds, and not each time is worth a transaction."""
        now = self._now()
        stale = server.stale
        news = stale is None or stale["machine"] != machine_id or fenced not in (None, stale["fenced"])
        if news or (stale is not None and now - stale["seen_at"] > STALE_NOTED_SECONDS):
            self._servers.change(server.id, lambda found: stood_down(found, machine_id, fenced, now))

    def _claim(self, server_id: str, machine_id: str, certificate: CertificateRow) -> tuple[ServerRow, Decision]:
        decisions: list[Decision] = []

        def transition(server: ServerRow) -> ServerRow:
            # decided again, with the row locked: of two that come at once only one gets it
            decision = decide(server, machine_id, certificate)
            decisions.append(decision)
            if not isinstance(decision, Claim):
                return server
            return claimed(server, machine_id, raises_epoch=decision.raises_epoch, now=self._now())

        server = self._servers.change(server_id, transition)
        return server, Take() if isinstance(decisions[-1], Claim) else decisions[-1]

    def record_push(self, server_id: str, volumes: list[VolumeDeclaration]) -> None:
        """The owner made contact, and this is what it replicates."""
        now = self._now()
        self._servers.change(
            server_id, lambda server: dataclasses.replace(server, last_seen_at=now, volumes=tuple(volumes))
        )

    def record_contact(self, server_id: str) -> None:
        """The owner was heard."""
        now = self._now()
        self._servers.change(server_id, lambda server: dataclasses.replace(server, last_seen_at=now))

    def point_of(self, server_id: str, point_id: str) -> Point:
        """A point of this server by id, or `latest`. Raises NotFound."""
        if point_id == LATEST:
            newest = self._points.newest_first(server_id)
            if not newest:
                raise NotFound("there is no recovery point of this server yet", "push first: understudy-agent push")
            return newest[0]
        found = self._points.get(point_id)
        if found.server_id != server_id:
            raise NotFound(
                f"point {point_id} belongs to another server, and this machine's identity is not that server's",
                "enrol this machine for it: understudy enroll-token --name SERVER",
            )
        return found.point

    def record_pull(self, point_id: str, volume: int, report: PulledReport) -> None:
        self._points.add_pull(point_id, volume, machine_of(report.machine_id), report.root, report.received_bytes)
