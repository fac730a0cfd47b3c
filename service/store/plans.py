"""Recovery plans as the operator wrote them (the text is kept, and parsed each time), how they stand, and caps."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection
from typing import Any

from sqlalchemy import delete, insert, select

from agent.protocol.errors import NotFound
from recovery.plans import Caps
from service.store.database import Database
from service.store.reading import read, readable
from service.store.rows import PlanCheck
from service.store.schema import caps, plan_checks, plans, tenants
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

    def texts(self, tenant: str) -> dict[str, str]:
        """All of them, by name."""
        query = select(plans.c.name, plans.c.text).where(plans.c.tenant == tenant).order_by(plans.c.name)
        with self._database.read() as connection:
            return {found.name: found.text for found in connection.execute(query)}

    def remove(self, tenant: str, name: str) -> None:
        """Raises NotFound."""
        self.get(tenant, name)
        with self._database.write() as connection:
            connection.execute(delete(plans).where(plans.c.tenant == tenant, plans.c.name == name))
            connection.execute(delete(plan_checks).where(plan_checks.c.tenant == tenant, plan_checks.c.plan == name))

    def tenants(self) -> list[str]:
        with self._database.read() as connection:
            return list(connection.execute(select(tenants.c.name).order_by(tenants.c.name)).scalars())

    # --- how plans stand ---

    def put_checks(self, tenant: str, checks: Collection[PlanCheck]) -> dict[str, PlanCheck]:
        """Replaces those before, which are returned by plan. In one transaction, so not too many at once."""
        if not checks:
            return {}
        same = (plan_checks.c.tenant == tenant) & plan_checks.c.plan.in_([check.plan for check in checks])
        with self._database.write() as connection:
            before = readable(plan_checks, connection.execute(select(*_CHECK).where(same)).mappings(), _check)
            connection.execute(delete(plan_checks).where(same))
            connection.execute(insert(plan_checks), [{"tenant": tenant} | dataclasses.asdict(one) for one in checks])
        return {check.plan: check for check in before}

    def checks(self, tenant: str) -> list[PlanCheck]:
        """By plan."""
        query = select(*_CHECK).where(plan_checks.c.tenant == tenant).order_by(plan_checks.c.plan)
        with self._database.read() as connection:
            return readable(plan_checks, connection.execute(query).mappings(), _check)

    def keep_checks(self, tenant: str, targets: Collection[str]) -> None:
        """Forget what is neither a plan nor a server without one any more."""
        gone = (plan_checks.c.tenant == tenant) & plan_checks.c.plan.not_in(list(targets))
        with self._database.write() as connection:
            connection.execute(delete(plan_checks).where(gone))

    # --- caps ---

    def caps(self, tenant: str) -> Caps:
        """What the tenant's runs may not exceed together; without limits where nobody set any."""
        query = select(caps.c.instances, caps.c.price_per_hour).where(caps.c.tenant == tenant)
        with self._database.read() as connection:
            found = connection.execute(query).mappings().one_or_none()
        return Caps() if found is None else read(caps, found, lambda fields: Caps(**fields))

    def put_caps(self, tenant: str, wanted: Caps) -> None:
        now = time.time()
        with self._database.write() as connection:
            ensure_tenant(connection, tenant, now)
            connection.execute(delete(caps).where(caps.c.tenant == tenant))
            connection.execute(insert(caps).values(tenant=tenant, changed_at=now, **dataclasses.asdict(wanted)))


_CHECK = [column for column in plan_checks.c if column.name != "tenant"]


def _check(fields: dict[str, Any]) -> PlanCheck:
    return PlanCheck(**fields)
