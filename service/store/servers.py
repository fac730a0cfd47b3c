"""Servers: who they are, who owns their identity, what they look like."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

from sqlalchemy import Connection, Select, bindparam, exists, insert, select, update

from agent.protocol.errors import NotFound, StorageError, UnderstudyError
from agent.protocol.messages import VolumeDeclaration, from_json, to_json
from service.store.commands import OPEN
from service.store.database import Database
from service.store.reading import read, readable
from service.store.rows import ServerRow, ServerState
from service.store.schema import commands, servers

_BARE = [column for column in servers.c if column.name not in ("volumes", "inventory")]


class ServerStore:
    """Raises NotFound for what there is not; otherwise as Database."""

    def __init__(
        self, database: Database, witness: Callable[[ServerRow, ServerRow], None] = lambda before, after: None
    ) -> None:
        """`witness` is told of a change (before, after) ahead of it, and what it raises prevents it."""
        self._database = database
        self._witness = witness

    def get(self, server_id: str) -> ServerRow:
        with self._database.read() as connection:
            return _get(connection, server_id)

    def greeted(self, server_id: str) -> tuple[ServerRow, bool]:
        """For hellos: the row without volumes and inventory, and whether commands wait."""
        found = self.greeted_all([server_id]).get(server_id)
        if found is None:
            return self.get(server_id), False  # which says why
        return found

    def greeted_all(self, server_ids: Collection[str]) -> dict[str, tuple[ServerRow, bool]]:
        """The same for many; those that there are."""
        asked = exists().where((commands.c.server_id == servers.c.id) & commands.c.state.in_(OPEN))
        query = select(*_BARE, asked.label("asked")).where(servers.c.id.in_(server_ids))
        rows = {}
        with self._database.read() as connection:
            for row, waiting in readable(servers, connection.execute(query).mappings(), _greeted):
                rows[row.id] = row, waiting
        return rows

    def by_name(self, tenant: str, name: str) -> ServerRow:
        with self._database.read() as connection:
            found = find_server(connection, tenant, name)
            if found is None:
                known = select(servers.c.name).where(servers.c.tenant == tenant).order_by(servers.c.name).limit(10)
                names = ", ".join(connection.execute(known).scalars()) or "none yet"
                raise NotFound(f"no server {name!r} is protected", f"there are: {names}")
            return found

    def all(
        self, tenant: str, on_damage: Callable[[str, str, StorageError], None] = lambda *about: None
    ) -> list[ServerRow]:
        """By name; without those whose row is damaged: `on_damage` hears of them (id, name, what is wrong)."""
        query = select(servers).where(servers.c.tenant == tenant).order_by(servers.c.name)
        with self._database.read() as connection:
            return readable(
                servers,
                connection.execute(query).mappings(),
                _row,
                lambda found, error: on_damage(str(found["id"]), str(found["name"]), error),
            )

    def every(self) -> list[ServerRow]:
        """Of all tenants; without those whose row is damaged."""
        return self._readable(select(servers))

    def those(self, server_ids: Collection[str]) -> list[ServerRow]:
        """The same of these alone, as far as they are known."""
        return self._readable(select(servers).where(servers.c.id.in_(server_ids)))

    def _readable(self, query: Select[Any]) -> list[ServerRow]:
        with self._database.read() as connection:
            return readable(servers, connection.execute(query).mappings(), _row)

    def change(self, server_id: str, transition: Callable[[ServerRow], ServerRow]) -> ServerRow:
        """Replace the row by what the (pure) transition makes of it; nobody else changes it meanwhile."""
        told: list[tuple[ServerRow, ServerRow]] = []
        try:
            with self._database.write() as connection:
                before = _get(connection, server_id, lock=True)
                after = transition(before)
                if after != before:
                    told.append((before, after))
                    self._witness(before, after)
                    values = _values(after)
                    del values["id"], values["tenant"]
                    connection.execute(update(servers).where(servers.c.id == server_id).values(values))
                return after
        except UnderstudyError:
            for before, after in told:  # it did not come to it
                with contextlib.suppress(UnderstudyError):
                    self._witness(after, before)
            raise

    def seen(self, at: Mapping[tuple[str, str], float]) -> None:
        """When (seconds since 1970) machines were last heard, by (server, machine). Of a machine that is not the owner,
        or that was not heard before since it became so, nothing is written."""
        known = (servers.c.owner_machine == bindparam("machine")) & servers.c.last_seen_at.is_not(None)
        query = update(servers).where(servers.c.id == bindparam("server"), known).values(last_seen_at=bindparam("at"))
        with self._database.write() as connection:
            connection.execute(query, [{"server": s, "machine": m, "at": seen} for (s, m), seen in sorted(at.items())])


# --- parts of a larger transaction of this package ---


def find_server(connection: Connection, tenant: str, name: str) -> ServerRow | None:
    query = select(servers).where(servers.c.tenant == tenant, servers.c.name == name)
    found = connection.execute(query).mappings().one_or_none()
    return None if found is None else read(servers, found, _row)


def insert_server(connection: Connection, row: ServerRow) -> None:
    connection.execute(insert(servers).values(_values(row)))


def _get(connection: Connection, server_id: str, *, lock: bool = False) -> ServerRow:
    query = select(servers).where(servers.c.id == server_id)
    found = connection.execute(query.with_for_update() if lock else query).mappings().one_or_none()
    if found is None:
        raise NotFound(f"there is no server {server_id}")
    return read(servers, found, _row)


def _row(fields: dict[str, Any]) -> ServerRow:
    volumes = tuple(from_json(VolumeDeclaration, volume) for volume in fields.get("volumes", ()))
    if fields["stale"] is not None:
        fields["stale"] = {name: fields["stale"][name] for name in ("machine", "since", "seen_at", "fenced")}
    return ServerRow(**{**fields, "state": ServerState(fields["state"]), "volumes": volumes})


def _greeted(fields: dict[str, Any]) -> tuple[ServerRow, bool]:
    waiting = bool(fields.pop("asked"))
    return _row(fields), waiting


def _values(row: ServerRow) -> dict[str, Any]:
    values = {name.name: getattr(row, name.name) for name in dataclasses.fields(row)}
    values["state"] = row.state.value
    values["volumes"] = [to_json(volume) for volume in row.volumes]
    return values
