import threading

import pytest

from agent.protocol.errors import NotFound
from recovery.control import Control, Server
from service.control import ServiceControl
from service.store.audit import AuditStore
from service.store.commands import CommandStore
from service.store.database import Database
from service.store.points import PointStore
from service.store.servers import ServerStore
from tests.service.store.rows_for_tests import add_server, manifest


class World:
    def __init__(self, database: Database) -> None:
        self.database = database
        self.ended: list[tuple[str, str]] = []
        self.captured: list[tuple[str, str, str, str]] = []
        self.audit = AuditStore(database)
        self.points_known = threading.Event()
        self.points_known.set()
        self.control: Control = ServiceControl(
            ServerStore(database),
            PointStore(database),
            CommandStore(database),
            self.audit,
            self._capture,
            lambda server_id, because: self.ended.append((server_id, because)),
            self.points_known,
            now=lambda: 100.0,
        )

    def _capture(self, server: Server, instance_id: str, label: str, request_id: str) -> str:
        self.captured.append((server.name, instance_id, label, request_id))
        return "pt-captured"


@pytest.fixture
def world(database: Database) -> World:
    add_server(database, owner_machine="home", last_seen_at=70.0)
    return World(database)


def test_a_server_is_found_by_name_with_how_long_it_was_silent(world: World) -> None:
    server = world.control.server("default", "web01")
    assert (server.id, server.state, server.owner, server.last_seen_seconds) == ("srv-1", "protected", "home", 30.0)
    with pytest.raises(NotFound, match="there are: web01"):
        world.control.server("default", "web02")
    with pytest.raises(NotFound):
        world.control.server("somebody-else", "web01")


@pytest.mark.parametrize("ask", ["points", "capture"])
def test_who_asks_for_points_waits_until_it_is_known_which_there_are(world: World, ask: str) -> None:
    world.points_known.clear()
    arguments = ["srv-1"] if ask == "points" else ["srv-1", "i-1", "final", "failback-1.4"]
    asking = threading.Thread(target=getattr(world.control, ask), args=arguments)
    asking.start()
    assert world.control.server("default", "web01").id == "srv-1", "all else goes on"
    assert asking.is_alive()
    assert world.captured == []
    world.points_known.set()
    asking.join()


def test_a_failover_ends_the_push_and_the_requests_of_the_owner_before(world: World) -> None:
    world.control.request_point("srv-1", "label", "r-1")
    world.control.request_point("srv-1", "label", "r-1")
    assert world.control.hand_to_instance("srv-1", "INSTANCE", "failover-1") == 2
    assert world.control.hand_to_instance("srv-1", "INSTANCE", "failover-1") == 2
    assert "failed over by failover-1" in (world.control.request_state("r-1").error or "")
    assert world.ended[0] == ("srv-1", "web01 was failed over by failover-1")
    server = world.control.server("default", "web01")
    assert (server.state, server.owner, server.last_seen_seconds) == ("failed_over", "instance", None)


def test_the_way_home_ends_protected(world: World) -> None:
    world.control.hand_to_instance("srv-1", "instance", "failover-1")
    assert world.control.hand_home("srv-1", "instance", "failback-1") == 3
    assert not world.control.home_arrived("srv-1", "failback-1")
    world.control.settle("srv-1", "failback-1")
    assert world.control.server("default", "web01").state == "protected"


def test_captures_and_points_and_pulls_reach_the_receiver_and_the_store(world: World) -> None:
    assert world.control.capture("srv-1", "i-1", "final", "r-1") == "pt-captured"
    assert world.captured == [("web01", "i-1", "final", "r-1")]
    PointStore(world.database).add(manifest("pt-1"))
    assert [point.id for point in world.control.points("srv-1")] == ["pt-1"]
    assert world.control.pulled_volumes("pt-1") == set()


def test_what_runs_do_is_written_down(world: World) -> None:
    world.control.audit("default", "run.drill", "started")
    (entry,) = world.audit.newest_first("default")
    assert (entry.who, entry.action, entry.detail) == ("service", "run.drill", "started")
