from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.protocol.errors import StorageFull
from service.identity.ownership import handed_to_instance
from service.identity.sightings import Sightings
from service.store.database import Database, sqlite_url
from service.store.rows import ServerRow
from service.store.servers import ServerStore
from tests.service.store.rows_for_tests import add_server


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[ServerStore]:
    database = Database.open(sqlite_url(tmp_path / "x.sqlite"))
    for name in ("web01", "web02", "web03"):
        add_server(database, id=f"srv-{name}", name=name, owner_machine="m", last_seen_at=1.0)
    yield ServerStore(database)
    database.close()


def heard(servers: ServerStore, name: str) -> float | None:
    return servers.get(f"srv-{name}").last_seen_at


def test_what_was_noted_is_written_down_together_and_only_the_last_of_each(servers: ServerStore) -> None:
    sightings = Sightings(servers)
    for at in (2.0, 3.0):
        sightings.note(servers.get("srv-web01"), at)
    sightings.note(servers.get("srv-web02"), 4.0)
    assert [heard(servers, name) for name in ("web01", "web02", "web03")] == [1.0, 1.0, 1.0]
    sightings.flush()
    sightings.flush()
    assert [heard(servers, name) for name in ("web01", "web02", "web03")] == [3.0, 4.0, 1.0]


def test_a_source_that_was_heard_before_a_failover_is_not_taken_for_its_instance(servers: ServerStore) -> None:
    sightings = Sightings(servers)
    sightings.note(servers.get("srv-web01"), 5.0)
    servers.change("srv-web01", lambda row: handed_to_instance(row, "instance", "failover-1", 6.0))
    sightings.flush()
    assert heard(servers, "web01") is None
    sightings.note(servers.get("srv-web01"), 7.0)  # an owner's first contact is written down at once, and not here
    sightings.flush()
    assert heard(servers, "web01") is None


def test_a_full_disk_costs_nothing_but_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    class Full:
        def seen(self, at: object) -> None:
            raise StorageFull("no space")

    sightings = Sightings(Full())
    sightings.note(dataclasses.replace(ServerRow(id="s", tenant="t", name="n", created_at=0.0), owner_machine="m"), 1.0)
    sightings.flush()
    assert "1 agents" in caplog.text
