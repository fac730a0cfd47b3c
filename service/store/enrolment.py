"""Enrolment tokens and the agents' certificates. Of a token only the SHA-256 of its secret is kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from sqlalchemy import insert, select, update

from agent.protocol.errors import Conflict, TokenError
from service.store.database import Database
from service.store.reading import read
from service.store.rows import CertificateRow, ServerRow
from service.store.schema import certificates, enroll_tokens
from service.store.servers import find_server, insert_server
from service.store.tenants import ensure_tenant


class EnrolmentStore:
    """Raises as Database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add_token(
        self, secret_sha256: str, tenant: str, server_name: str | None, now: float, expires_at: float
    ) -> None:
        """Keep a new token; the tenant is made if there is none of that name."""
        with self._database.write() as connection:
            ensure_tenant(connection, tenant, now)
            connection.execute(
                insert(enroll_tokens).values(
                    secret_sha256=secret_sha256,
                    tenant=tenant,
                    server_name=server_name,
                    created_at=now,
                    expires_at=expires_at,
                )
            )

    def enroll(
        self,
        secret_sha256: str,
        now: float,
        settle_on: Callable[[str, str | None, Callable[[str], ServerRow | None]], ServerRow],
        certify: Callable[[ServerRow], CertificateRow],
    ) -> tuple[ServerRow, CertificateRow]:
        """Use a token up, in one transaction with all that follows from it: whatever fails leaves it unused.

        `settle_on(tenant, name in the token, find by name)` says which server it is; one that was not found is stored.
        Raises TokenError, and what the two raise."""
        with self._database.write() as connection:
            query = select(enroll_tokens).where(enroll_tokens.c.secret_sha256 == secret_sha256).with_for_update()
            found = connection.execute(query).mappings().one_or_none()
            if found is None:
                raise TokenError("the service does not know this enrolment token")
            token = read(enroll_tokens, found, dict)
            if token["used_at"] is not None:
                raise TokenError("this enrolment token was used already")
            if token["expires_at"] <= now:
                raise TokenError("this enrolment token has expired")
            used = update(enroll_tokens).where(enroll_tokens.c.secret_sha256 == secret_sha256).values(used_at=now)
            connection.execute(used)

            tenant: str = token["tenant"]
            server = settle_on(tenant, token["server_name"], lambda name: find_server(connection, tenant, name))
            known = find_server(connection, tenant, server.name)
            if known is None:
                insert_server(connection, server)
            elif known.id != server.id:
                raise Conflict(f"a server named {server.name!r} exists already")
            certificate = certify(server)
            connection.execute(insert(certificates).values(dataclasses.asdict(certificate)))
            return server, certificate

    def add_certificate(self, certificate: CertificateRow) -> None:
        with self._database.write() as connection:
            connection.execute(insert(certificates).values(dataclasses.asdict(certificate)))

    def certificate(self, serial: str) -> CertificateRow | None:
        query = select(certificates).where(certificates.c.serial == serial)
        with self._database.read() as connection:
            found = connection.execute(query).mappings().one_or_none()
            return None if found is None else read(certificates, found, _certificate)

    def revoke(self, serial: str) -> None:
        with self._database.write() as connection:
            connection.execute(update(certificates).where(certificates.c.serial == serial).values(revoked=True))


def _certificate(fields: dict[str, Any]) -> CertificateRow:
    return CertificateRow(**fields)
