"""Who did what, when. Rows are added, and never changed."""

from __future__ import annotations

import dataclasses
import time

from sqlalchemy import insert, select

from service.store.database import Database
from service.store.rows import AuditEntry
from service.store.schema import audit
from service.store.tenants import ensure_tenant


class AuditStore:
    """Raises as Database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, tenant: str, who: str, action: str, detail: str) -> None:
        entry = AuditEntry(tenant=tenant, at=time.time(), who=who, action=action, detail=detail)
        with self._database.write() as connection:
            ensure_tenant(connection, tenant, entry.at)
            connection.execute(insert(audit).values(dataclasses.asdict(entry)))

    def newest_first(self, tenant: str, limit: int = 100) -> list[AuditEntry]:
        columns = [column for column in audit.c if column.name != "id"]
        query = select(*columns).where(audit.c.tenant == tenant).order_by(audit.c.id.desc()).limit(limit)
        with self._database.read() as connection:
            return [AuditEntry(**found) for found in connection.execute(query).mappings()]
