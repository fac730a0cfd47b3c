"""Recovery plans as the operator wrote them: the text is kept, and parsed each time."""

from __future__ import annotations

import time

from sqlalchemy import delete, insert, select

from agent.protocol.errors import NotFound
from service.store.database import Database
from service.store.schema import plans
from service.store.tenants import ensure_tenant


class PlanStore:
    """Raises as Database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def put(self, tenant: str, name: str, text: str) -> None:
        """Replaces a plan of that name."""
        now = time.time()
        with self._database.write() as connection:
            ensure_tenant(connection, tenant, now)
            connection.execute(delete(plans).where(plans.c.tenant == tenant, plans.c.name == name))
            connection.execute(insert(plans).values(tenant=tenant, name=name, text=text, changed_at=now))

    def find(self, tenant: str, name: str) -> str | None:
        query = select(plans.c.text).where(plans.c.tenant == tenant, plans.c.name == name)
        with self._database.read() as connection:
            return connection.execute(query).scalar()

    def get(self, tenant: str, name: str) -> str:
        text = self.find(tenant, name)
        if text is None:
            names = ", ".join(self.names(tenant)) or "none yet"
            raise NotFound(f"there is no plan {name!r}", f"there are: {names}")
        return text

    def names(self, tenant: str) -> list[str]:
        query = select(plans.c.name).where(plans.c.tenant == tenant).order_by(plans.c.name)
        with self._database.read() as connection:
            return list(connection.execute(query).scalars())
