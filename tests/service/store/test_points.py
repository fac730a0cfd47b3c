import pytest

from agent.protocol.errors import NotFound
from service.store.database import Database
from service.store.points import PointStore
from service.store.servers import ServerStore
from tests.service.store.rows_for_tests import add_server, manifest


def test_a_point_comes_back_as_it_was_added(database: Database) -> None:
    add_server(database)
    store = PointStore(database)
    store.add(manifest("pt-1"))
    store.add(manifest("pt-1"))
    assert store.get("pt-1") == manifest("pt-1")
    assert store.newest_first("srv-1") == [manifest("pt-1").point]
    assert store.listed() == store.listed("srv-1") == {"srv-1": ["pt-1"]}


def test_the_newest_is_the_one_committed_last_whatever_the_clock_said(database: Database) -> None:
    add_server(database)
    store = PointStore(database)
    store.add(manifest("pt-1", taken_at="2026-06-01T00:00:00.000Z"))
    store.add(manifest("pt-2", taken_at="2026-01-01T00:00:00.000Z"))
    assert [point.id for point in store.newest_first("srv-1")] == ["pt-2", "pt-1"]
    assert store.newest("default")["srv-1"].id == "pt-2"
    store.remove("pt-2")
    store.add(manifest("pt-3", taken_at="2025-01-01T00:00:00.000Z"))
    assert store.newest("default")["srv-1"].id == "pt-3"


def test_another_tenants_point_is_not_found(database: Database) -> None:
    add_server(database)
    store = PointStore(database)
    store.add(manifest("pt-1"))
    with pytest.raises(NotFound):
        store.get("pt-1", "somebody-else")
    with pytest.raises(NotFound):
        store.get("pt-2")


def test_a_server_that_the_database_lost_is_made_again_for_whoever_comes_first(database: Database) -> None:
    PointStore(database).add(manifest("pt-1"))
    server = ServerStore(database).by_name("default", "web01")
    assert (server.id, server.epoch, server.owner_machine) == ("srv-1", 3, None)


def test_a_lost_server_whose_name_was_taken_gets_another(database: Database) -> None:
    add_server(database, id="srv-2")
    PointStore(database).add(manifest("pt-1"))
    assert ServerStore(database).get("srv-1").name == "web01-srv-1"


def test_pulls_are_remembered_a_volume_and_go_with_their_point(database: Database) -> None:
    add_server(database)
    store = PointStore(database)
    store.add(manifest("pt-1"))
    store.add_pull("pt-1", 0, "m", "ab")
    store.add_pull("pt-1", 0, "m", "ab")
    store.add_pull("pt-1", 1, "m", "ab")
    assert store.pulled_volumes("pt-1") == {0, 1}
    with pytest.raises(NotFound):
        store.add_pull("pt-2", 0, "m", "ab")
    store.remove("pt-1")
    store.remove("pt-1")
    store.add(manifest("pt-1"))
    assert store.pulled_volumes("pt-1") == set()


def test_servers_with_more_points_than_are_kept_are_found(database: Database) -> None:
    add_server(database)
    add_server(database, id="srv-2", name="db01")
    store = PointStore(database)
    for name in ("pt-1", "pt-2", "pt-3"):
        store.add(manifest(name))
    store.add(manifest("pt-4", "srv-2"))
    assert list(store.servers_with_more_than(2)) == ["srv-1"]
    assert list(store.servers_with_more_than(3)) == []


def test_a_verified_point_says_when(database: Database) -> None:
    add_server(database)
    store = PointStore(database)
    store.add(manifest("pt-1"))
    store.mark_verified("pt-1", "2026-02-01T00:00:00Z")
    assert store.get("pt-1").point.verified_at == "2026-02-01T00:00:00Z"
