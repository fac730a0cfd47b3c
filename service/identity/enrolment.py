"""Enrolment: a one-time token becomes a server's identity; certificates are issued and renewed."""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from agent.protocol.errors import AuthError, BadMessage, Conflict, TrustError, UsageError
from agent.protocol.messages import EnrollReply, EnrollRequest, RenewReply
from agent.protocol.tokens import EnrollToken
from service.identity.ownership import normalized
from service.pki import Pki
from service.store.enrolment import EnrolmentStore
from service.store.rows import CertificateRow, ServerRow

TOKEN_HOURS = 24.0
MAX_TOKEN_HOURS = 24.0 * 30
REMEMBERED, REMEMBERED_SECONDS = 100_000, 60.0
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,99}", re.ASCII)
_TENANT = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


@dataclass(frozen=True, slots=True)
class IssuedToken:
    token: EnrollToken
    expires_at: float


class Enrolment:
    """All calls block. `now` gives seconds since 1970."""

    def __init__(self, store: EnrolmentStore, pki: Pki, now: Callable[[], float] = time.time) -> None:
        self._store = store
        self._pki = pki
        self._now = now
        self._recent: dict[str, tuple[CertificateRow, float]] = {}

    def issue_token(self, tenant: str, server_name: str | None, hours: float = TOKEN_HOURS) -> IssuedToken:
        """A new one-time token. Raises UsageError."""
        if not _TENANT.fullmatch(tenant):
            raise UsageError(f"{tenant!r} cannot be a tenant's name", "use lower-case letters, digits and dashes")
        if server_name is not None and not _NAME.fullmatch(server_name):
            raise UsageError(f"{server_name!r} cannot be a server's name", _NAME_HINT)
        if not 0 < hours <= MAX_TOKEN_HOURS:
            raise UsageError(f"a token cannot be valid for {hours:g} hours", f"use up to {MAX_TOKEN_HOURS:g}")
        token = EnrollToken(secrets.token_urlsafe(32), self._pki.ca_fingerprint)
        now = self._now()
        self._store.add_token(_sha256(token.secret), tenant, server_name, now, now + hours * 3600)
        return IssuedToken(token, now + hours * 3600)

    def enroll(self, request: EnrollRequest) -> EnrollReply:
        """Whatever fails leaves the token unused. Raises TokenError, BadMessage, Conflict."""
        machine_id = machine_of(request.machine_id)
        now = self._now()
        issued_pem = ""

        def settle_on(tenant: str, name: str | None, find: Callable[[str], ServerRow | None]) -> ServerRow:
            wanted = name or request.hostname
            if not _NAME.fullmatch(wanted):
                raise BadMessage(f"the host name {wanted!r} cannot be a server's name", f"{_NAME_HINT}; {_NAME_IT}")
            known = find(wanted)
            if known is None:
                return ServerRow(
                    id=f"srv-{secrets.token_hex(5)}",
                    tenant=tenant,
                    name=wanted,
                    created_at=now,
                    owner_machine=machine_id,
                    owner_since=now,
                    inventory=request.inventory,
                )
            if name is None and known.owner_machine != machine_id:
                raise Conflict(
                    f"a server named {wanted} is protected already, by machine {known.owner_machine}, not {machine_id}",
                    f"for a repair target or a replacement: understudy enroll-token --name {wanted}; else {_NAME_IT}",
                )
            return known

        def certify(server: ServerRow) -> CertificateRow:
            nonlocal issued_pem
            issued = self._pki.issue_agent(request.csr_pem, server.id)
            issued_pem = issued.pem
            return CertificateRow(
                serial=issued.serial,
                tenant=server.tenant,
                server_id=server.id,
                machine_id=machine_id,
                enrolled_at=now,
                not_after=issued.not_after.timestamp(),
            )

        server, _ = self._store.enroll(_sha256(request.token), now, settle_on, certify)
        return EnrollReply(server_id=server.id, server_name=server.name, certificate_pem=issued_pem)

    def renew(self, serial: str, csr_pem: str) -> RenewReply:
        """A new certificate for who holds this one; it counts as the same enrolment. Raises TrustError, BadMessage."""
        current = self.certificate(serial)
        issued = self._pki.issue_agent(csr_pem, current.server_id)
        renewed = CertificateRow(
            serial=issued.serial,
            tenant=current.tenant,
            server_id=current.server_id,
            machine_id=current.machine_id,
            enrolled_at=current.enrolled_at,
            not_after=issued.not_after.timestamp(),
        )
        self._store.add_certificate(renewed)
        return RenewReply(certificate_pem=issued.pem)

    def certificate(self, serial: str) -> CertificateRow:
        """Raises TrustError (unknown, or expired: TLS lets those through), AuthError (revoked)."""
        found = self.remembered(serial)
        if found is not None:
            return found
        found = self._store.certificate(serial)
        if found is None:
            raise TrustError(f"the service does not know the certificate {serial}", _ENROL_AGAIN)
        if found.not_after <= self._now():
            raise TrustError("this agent's certificate has expired", f"check the clocks; else {_ENROL_AGAIN}")
        if found.revoked:
            raise AuthError(f"the certificate {serial} was revoked", _ENROL_AGAIN)
        if len(self._recent) >= REMEMBERED:
            self._recent.clear()
        self._recent[serial] = found, self._now()
        return found

    def remembered(self, serial: str) -> CertificateRow | None:
        """One that was good a moment ago, and has not expired since: every request asks. Who is revoked in the database
        by somebody else (`revoke` is heeded at once) is let in for so long more."""
        found, at = self._recent.get(serial, (None, 0.0))
        now = self._now()
        good = found is not None and 0 <= now - at < REMEMBERED_SECONDS and now < found.not_after
        return found if good else None

    def revoke(self, serial: str) -> None:
        """From now on nobody gets in with it."""
        self._store.revoke(serial)
        self._recent.pop(serial, None)


_NAME_HINT = "use letters, digits, dots, dashes and underscores, at most 100"
_NAME_IT = "give it a name of its own: understudy enroll-token --name NAME"
_ENROL_AGAIN = "enrol this machine again with a new token: understudy enroll-token"


def machine_of(text: str) -> str:
    """A machine id as it is compared. Raises BadMessage."""
    machine_id = normalized(text)
    if not machine_id or len(machine_id) > 100 or not machine_id.isprintable():
        raise BadMessage(f"machine_id is {text[:40]!r}, and cannot tell a machine from others")
    return machine_id


def _sha256(secret: str) -> str:
    """Looked up by its hash, so that how long a comparison takes says nothing about the secret."""
    return hashlib.sha256(secret.encode()).hexdigest()
