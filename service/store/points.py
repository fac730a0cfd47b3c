"""Rows about recovery points: a view of what the site holds, rebuilt from the manifests if it was lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Integer, RowMapping, delete, func, insert, literal_column, select, update

from agent.protocol.errors import NotFound, StorageError, UnderstudyError
from agent.protocol.messages import Point, PointVolume, from_json, to_json
from service.receiver.manifest import Manifest
from service.store.database import Database
from service.store.reading import read, readable
from service.store.rows import ServerRow
from service.store.schema import points, pulls, servers
from service.store.servers import find_server, insert_server
from service.store.tenants import ensure_tenant


class PointStore:
    """Points are in the order in which they were committed: clocks may jump, the chain at the site does not.

    `signed` reads the manifest of a point (by its server's id and its own) as it lies at the site: lists take that
    where a row is damaged."""

    def __init__(self, database: Database, signed: Callable[[str, str], Manifest] | None = None) -> None:
        self._database = database
        self._signed = signed

    def add(self, manifest: Manifest) -> None:
        """There already: does nothing. A server that the database lost is made again, owned by whoever comes first."""
        point = manifest.point
        with self._database.write() as connection:
            if connection.execute(select(points.c.id).where(points.c.id == point.id)).one_or_none() is not None:
                return
            self._ensure_server(connection, manifest)
            newest = select(func.max(points.c.sequence)).where(points.c.server_id == manifest.server_id)
            sequence = (connection.execute(newest).scalar() or 0) + 1
            values = _signed_values(manifest) | {"sequence": sequence, "created_at": time.time()}
            connection.execute(insert(points).values(values))

    def restore(self, manifests: list[Manifest]) -> None:
        """Make the rows of a server's points say what its manifests, oldest first, say, and in their order."""
        with self._database.write() as connection:
            _index_anew(connection)
            for manifest in manifests:
                self._ensure_server(connection, manifest)
                own = points.c.server_id == manifest.server_id
                newest = connection.execute(select(func.max(points.c.sequence)).where(own)).scalar() or 0
                values = _signed_values(manifest) | {"sequence": newest + 1}
                anew: dict[str, Any] = {"created_at": time.time(), "verified_at": None}
                known = points.c.id == manifest.point.id
                found = connection.execute(select(points).where(known)).mappings().one_or_none()
                if found is None:
                    connection.execute(insert(points).values(values | anew))
                elif readable(points, [found], _manifest):
                    connection.execute(update(points).where(known).values(values))
                else:  # pulls belong to the row, so it stays
                    connection.execute(update(points).where(known).values(values | anew))

    def places(self, tenant: str) -> list[tuple[str, str]]:
        """(server id, point id) of a tenant's points, each server's newest first."""
        query = select(points.c.server_id, points.c.id).where(points.c.tenant == tenant)
        with self._database.read() as connection:
            found = connection.execute(query.order_by(points.c.server_id, points.c.sequence.desc()))
            return [(server_id, point_id) for server_id, point_id in found]

    def remove(self, point_id: str) -> None:
        """Gone already: does nothing."""
        with self._database.write() as connection:
            connection.execute(delete(pulls).where(pulls.c.point_id == point_id))
            if connection.execute(delete(points).where(points.c.id == point_id)).rowcount == 0:
                _remove_unequal(connection, point_id)

    def get(self, point_id: str, tenant: str | None = None) -> Manifest:
        """The point and where it belongs. Raises NotFound, also for another tenant's."""
        query = select(points).where(points.c.id == point_id)
        with self._database.read() as connection:
            found = connection.execute(query).mappings().one_or_none()
        if found is None or tenant not in (None, found["tenant"]):
            raise NotFound(f"there is no recovery point {point_id}", "see: understudy points SERVER")
        return read(points, found, _manifest)

    def newest_first(self, server_id: str) -> list[Point]:
        query = select(points).where(points.c.server_id == server_id).order_by(points.c.sequence.desc())
        with self._database.read() as connection:
            return self._listed(connection.execute(query).mappings())

    def newest(self, tenant: str) -> dict[str, Point]:
        """The newest point of each server that has one, by server id."""
        last = (
            select(points.c.server_id, func.max(points.c.sequence).label("sequence"))
            .where(points.c.tenant == tenant)
            .group_by(points.c.server_id)
            .subquery()
        )
        same = (points.c.server_id == last.c.server_id) & (points.c.sequence == last.c.sequence)
        with self._database.read() as connection:
            found = connection.execute(select(points).join(last, same)).mappings().all()
            of_server = [row["server_id"] for row in found]
            return {
                server_id: point
                for server_id, row in zip(of_server, found, strict=True)
                for point in self._listed([row])
            }

    def listed(self, server_id: str | None = None) -> dict[str, list[str]]:
        """The ids of points, oldest first, by server: as the rows have them, whatever an index on ids says."""
        query = select(points.c.server_id, points.c.id)
        if server_id is None:
            query = query.with_hint(points, "NOT INDEXED", "sqlite")
        else:
            query = query.where(points.c.server_id == server_id)
        found: dict[str, list[str]] = {}
        with self._database.read() as connection:
            for row in connection.execute(query.order_by(points.c.sequence)):
                found.setdefault(row.server_id, []).append(row.id)
        return found

    def servers_with_more_than(self, count: int) -> list[str]:
        """The ids of servers that have more than `count` points."""
        query = select(points.c.server_id).group_by(points.c.server_id).having(func.count() > count)
        with self._database.read() as connection:
            return list(connection.execute(query).scalars())

    def mark_verified(self, point_id: str, verified_at: str) -> None:
        """`verified_at` is an ISO time."""
        with self._database.write() as connection:
            connection.execute(update(points).where(points.c.id == point_id).values(verified_at=verified_at))

    # --- pulls ---

    def add_pull(self, point_id: str, volume: int, machine_id: str, root: str, received_bytes: int = 0) -> None:
        """A machine has pulled and verified this volume; a later report replaces an earlier one."""
        with self._database.write() as connection:
            tenant = connection.execute(select(points.c.tenant).where(points.c.id == point_id)).scalar()
            if tenant is None:
                raise NotFound(f"there is no recovery point {point_id}", "see: understudy points SERVER")
            connection.execute(delete(pulls).where(pulls.c.point_id == point_id, pulls.c.volume == volume))
            connection.execute(
                insert(pulls).values(
                    point_id=point_id,
                    volume=volume,
                    tenant=tenant,
                    machine_id=machine_id,
                    root=root,
                    received_bytes=received_bytes,
                    at=time.time(),
                )
            )

    def pulled_volumes(self, point_id: str) -> set[int]:
        with self._database.read() as connection:
            return set(connection.execute(select(pulls.c.volume).where(pulls.c.point_id == point_id)).scalars())

    def pulled_bytes(self, point_id: str) -> int:
        """What those pulls brought over the wire, together."""
        wanted = select(func.coalesce(func.sum(pulls.c.received_bytes), 0)).where(pulls.c.point_id == point_id)
        with self._database.read() as connection:
            return int(connection.execute(wanted).scalar_one())

    def _listed(self, rows: Iterable[RowMapping]) -> list[Point]:
        return [manifest.point for manifest in readable(points, rows, _manifest, self._as_signed)]

    def _as_signed(self, found: RowMapping, _error: StorageError) -> Manifest | None:
        if self._signed is None:
            return None
        try:
            return self._signed(found["server_id"], found["id"])
        except UnderstudyError:  # its id, or its server's, is what is damaged
            return None

    def _ensure_server(self, connection: Connection, manifest: Manifest) -> None:
        known = select(servers.c.id).where(servers.c.id == manifest.server_id)
        if connection.execute(known).one_or_none() is not None:
            return
        ensure_tenant(connection, manifest.tenant, time.time())
        name = manifest.point.server
        if find_server(connection, manifest.tenant, name) is not None:
            name = f"{name}-{manifest.server_id}"  # somebody enrolled under that name since
        lost = ServerRow(
            id=manifest.server_id,
            tenant=manifest.tenant,
            name=name,
            created_at=time.time(),
            epoch=manifest.point.epoch,
        )
        insert_server(connection, lost)


def _signed_values(manifest: Manifest) -> dict[str, Any]:
    """What a row takes over from the manifest; when it was verified is not signed, and stays."""
    values = to_json(manifest.point)
    values["server_name"] = values.pop("server")
    del values["bootable"], values["verified_at"]  # the one follows from the runs, the other is only known here
    return values | {"server_id": manifest.server_id, "tenant": manifest.tenant, "parent": manifest.parent}


def _manifest(fields: dict[str, Any]) -> Manifest:
    of_point = {name: fields[name] for name in Point.__dataclass_fields__ if name in fields}
    of_point["volumes"] = [from_json(PointVolume, volume) for volume in fields["volumes"]]
    for at in (fields["taken_at"], fields["verified_at"]):
        if at is not None:
            datetime.fromisoformat(at)
    return Manifest(
        point=Point(server=fields["server_name"], **of_point),
        server_id=fields["server_id"],
        tenant=fields["tenant"],
        parent=fields["parent"],
    )


def _index_anew(connection: Connection) -> None:
    """So that it leads to the rows that are there: a bit that flips may part them."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("REINDEX points")


def _remove_unequal(connection: Connection, point_id: str) -> None:
    """Rows whose id is shown so, and is another to the database, since it is no text any more."""
    if connection.dialect.name != "sqlite":
        return
    place = literal_column("rowid", Integer)
    query = select(place.label("place"), points.c.id).with_hint(points, "NOT INDEXED", "sqlite")
    places = [row.place for row in connection.execute(query) if row.id == point_id]
    if places:
        _index_anew(connection)
        connection.execute(delete(points).where(place.in_(places)))
