"""A row that is not what it should be is named, and takes no other along."""

from typing import Any

import pytest
from sqlalchemy import text

from agent.protocol.errors import NotFound, StorageError
from recovery.runs import Run, RunKind
from service.store.audit import AuditStore
from service.store.database import Database
from service.store.pins import Pins
from service.store.points import PointStore
from service.store.runs import RunRows
from service.store.servers import ServerStore
from tests.service.store.rows_for_tests import add_server, manifest


def spoil(database: Database, sql: str, **values: Any) -> None:
    with database.write() as connection:
        assert connection.execute(text(sql), values).rowcount == 1


NO_TEXT = b"\xff\xfe"


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("taken_at", "2026-01-32T00:00:00Z"),
        ("epoch", "three"),
        ("size_bytes", 1.5),
        ("root", b"\x00"),
        ("volumes", "[1, 2"),
        ("volumes", '[{"path": "/dev/vda"}]'),
        ("created_at", 1e200),
        ("verified_at", "yesterday"),
    ],
)
def test_a_damaged_row_of_a_point_is_named_and_lists_show_what_was_signed(
    database: Database, column: str, value: Any
) -> None:
    add_server(database)
    signed = {name: manifest(name) for name in ("pt-1", "pt-2", "pt-3")}
    store = PointStore(database, lambda _server, point: signed[point])
    for one in signed.values():
        store.add(one)
    spoil(database, f"UPDATE points SET {column} = :value WHERE id = 'pt-2'", value=value)
    with pytest.raises(StorageError, match=r"table points .* pt-2 is damaged: .*") as damaged:
        store.get("pt-2")
    assert damaged.value.hint == "it is made again from the signed manifest: understudy verify --all --heal"
    assert store.newest_first("srv-1") == [signed[name].point for name in ("pt-3", "pt-2", "pt-1")]
    assert [point.id for point in PointStore(database).newest_first("srv-1")] == ["pt-3", "pt-1"]
    store.restore(list(signed.values()))
    assert store.get("pt-2").point == signed["pt-2"].point


def test_an_id_that_is_no_text_any_more_can_be_read_and_removed(database: Database) -> None:
    add_server(database)
    store = PointStore(database)
    store.add(manifest("pt-1"))
    store.add(manifest("pt-2"))
    spoil(database, "UPDATE points SET id = CAST(:id AS TEXT) WHERE id = 'pt-2'", id=NO_TEXT)
    (rotten,) = {*store.listed()["srv-1"]} - {"pt-1"}
    assert rotten.isprintable()
    store.remove(rotten)
    assert store.listed() == {"srv-1": ["pt-1"]}


@pytest.mark.parametrize(
    ("column", "value"),
    [("state", "protektet"), ("epoch", b"1"), ("volumes", "["), ("stale", '{"machine": "m"}'), ("last_seen_at", -1e9)],
)
def test_a_damaged_row_of_a_server_is_named_and_the_others_are_listed(
    database: Database, column: str, value: Any
) -> None:
    add_server(database)
    add_server(database, id="srv-2", name="db01")
    store = ServerStore(database)
    spoil(database, f"UPDATE servers SET {column} = :value WHERE id = 'srv-1'", value=value)
    told = []
    assert [row.id for row in store.all("default", lambda *about: told.append(about))] == ["srv-2"]
    ((server_id, name, error),) = told
    assert (server_id, name) == ("srv-1", "web01")
    assert "table servers" in error.message
    for ask in (lambda: store.get("srv-1"), lambda: store.by_name("default", "web01")):
        with pytest.raises(StorageError, match=r"table servers .* srv-1"):
            ask()
    with pytest.raises(NotFound):
        store.greeted("srv-3")


def test_a_damaged_step_keeps_its_run_out_of_lists_and_every_point_from_being_removed(database: Database) -> None:
    add_server(database)
    rows = RunRows(database)
    for number in (1, 2):
        run = Run(id=f"drill-{number}", tenant="default", kind=RunKind.DRILL, plan="web01", steps=[], created_at=number)
        rows.add(run)
    with database.write() as connection:
        connection.execute(
            text(
                "INSERT INTO steps (run_id, position, tenant, name, action, args, after, retries, optional, closing,"
                " state, result) VALUES ('drill-1', 0, 'default', 'x', 'launch', '{', '[]', 0, 0, 0, 'pending', '{}')"
            )
        )
    assert [run.id for run in rows.newest("default", 10)] == ["drill-2"]
    with pytest.raises(StorageError, match=r"table steps .* drill-1, 0 is damaged: args"):
        rows.get("drill-1")
    with pytest.raises(StorageError, match="table steps"):
        Pins(database).pinned()


def test_a_damaged_entry_of_the_audit_trail_hides_no_other(database: Database) -> None:
    trail = AuditStore(database)
    for detail in ("one", "two"):
        trail.add("default", "operator", "take", detail)
    spoil(database, "UPDATE audit SET at = 'noon' WHERE detail = 'one'")
    assert [entry.detail for entry in trail.newest_first("default")] == ["two"]
