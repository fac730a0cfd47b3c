"""Tenants: every other row belongs to one."""

from __future__ import annotations

from sqlalchemy import Connection, insert, select

from service.store.schema import tenants


def ensure_tenant(connection: Connection, name: str, now: float) -> None:
    """Part of a larger transaction of this package."""
    if connection.execute(select(tenants.c.name).where(tenants.c.name == name)).one_or_none() is None:
        connection.execute(insert(tenants).values(name=name, created_at=now))
