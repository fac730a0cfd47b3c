"""Who did what, when. Rows are added, and never changed."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

from sqlalchemy import insert, select

from service.store.database import Database
from service.store.reading import readable
from service.store.rows import AuditEntry
from service.store.schema import audit
from service.store.tenants import ensure_tenant


class AuditStore:
    """Raises as Database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, tenant: str, who: str, action: str, detail: str) -> None:
        self.add_all(tenant, who, action, [detail])

    def add_all(self, tenant: str, who: str, action: str, details: Sequence[str]) -> None:
        """A row for each, in one transaction."""
        if not details:
            return
        now = time.time()
        entries = [AuditEntry(tenant=tenant, at=now, who=who, action=action, detail=detail) for detail in details]
        with self._database.write() as connection:
            ensure_tenant(connection, tenant, now)
            connection.execute(insert(audit), [dataclasses.asdict(entry) for entry in entries])

    def newest_first(self, tenant: str, limit: int = 100) -> list[AuditEntry]:
        columns = [column for column in audit.c if column.name != "id"]
        query = select(*columns).where(audit.c.tenant == tenant).order_by(audit.c.id.desc()).limit(limit)
        with self._database.read() as connection:
            return readable(audit, connection.execute(query).mappings(), lambda fields: AuditEntry(**fields))
