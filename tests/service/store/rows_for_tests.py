"""Rows that tests need and do not care about."""

from agent.protocol.messages import Point, PointVolume
from service.receiver.manifest import Manifest
from service.store.database import Database
from service.store.rows import ServerRow
from service.store.servers import insert_server
from service.store.tenants import ensure_tenant


def add_server(database: Database, **fields: object) -> ServerRow:
    row = ServerRow(**{"id": "srv-1", "tenant": "default", "name": "web01", "created_at": 1.0, **fields})  # type: ignore[arg-type]
    with database.write() as connection:
        ensure_tenant(connection, row.tenant, 0.0)
        insert_server(connection, row)
    return row


def manifest(point_id: str, server_id: str = "srv-1", **fields: object) -> Manifest:
    point = Point(
        **{  # type: ignore[arg-type]
            "id": point_id,
            "server": "web01",
            "taken_at": "2026-01-31T14:30:00.000Z",
            "consistency": "crash",
            "completeness": "scanned",
            "root": "ab" * 32,
            "size_bytes": 1 << 40,
            "sent_bytes": 7,
            "epoch": 3,
            "volumes": [PointVolume(path="/dev/vda", size_bytes=1 << 40, block_bytes=65536, root="cd" * 32)],
            "label": "before the upgrade",
            **fields,
        }
    )
    return Manifest(point=point, server_id=server_id, tenant="default", parent=None)
