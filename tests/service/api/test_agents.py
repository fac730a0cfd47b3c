"""A real agent's daemon on a real service: heartbeat, commands, renewal."""

import dataclasses
import json
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import select

from agent.inventory import machine_id
from service.api.views import SILENT_SECONDS
from service.cli import main, points
from service.identity.ownership import handed_to_instance
from service.store.commands import CommandStore
from service.store.database import Database, sqlite_url
from service.store.schema import commands
from service.store.servers import ServerStore
from tests.faults.harness import Agent, Service, ended, run, served
from tests.faults.hostile import BLOCK, Hostile, root_of
from tests.faults.images import make_image


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with served(tmp_path / "service", "--interval-seconds", "100000") as made:
        yield made


@pytest.fixture
def daemon(service: Service, tmp_path: Path) -> Iterator[Agent]:
    agent = Agent(tmp_path / "agent", service)
    agent.enroll("web01")
    agent.protect(make_image(tmp_path / "disk.raw", random.Random(1), 1 << 20))
    running = agent.begin("run")
    yield agent
    running.terminate()
    log = ended(running).err
    assert "Traceback" not in log, log


def test_take_asks_the_agent_waits_and_prints_the_point(service: Service, daemon: Agent) -> None:
    point = run("understudy", "take", "web01", "--label", "by hand", "--data", service.data, "--json").document
    assert (point["server"], point["label"]) == ("web01", "by hand")
    (server,) = run("understudy", "servers", "--data", service.data, "--json").document
    assert server["last_point"] == point["id"]
    assert server["state"] == "protected"
    assert server["lag_seconds"] is not None
    assert [volume["size_bytes"] for volume in server["volumes"]] == [1 << 20]
    points = run("understudy", "points", "web01", "--data", service.data, "--json").document
    assert point in points
    assert {"id", "server", "taken_at", "consistency", "completeness", "root", "size_bytes", "sent_bytes", "label",
            "verified_at", "bootable"} <= point.keys()  # fmt: skip


def test_who_asks_an_agent_that_fell_silent_is_told_so(
    service: Service, daemon: Agent, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was there a moment ago, so that it was asked; and the answer is waited for no longer than it may take."""
    run("understudy", "take", "web01", "--data", service.data, "--json").document  # noqa: B018  # asserts
    idle = Agent(daemon.folder.with_name("idle"), service)
    idle.enroll("idle01")  # no daemon
    monkeypatch.setattr(points, "_WAIT_SECONDS", 1)
    with ThreadPoolExecutor() as pool:
        taking = pool.submit(main, ["take", "idle01", "--data", str(service.data)])
        database = Database.open(sqlite_url(service.data / "understudy.sqlite"))
        try:
            servers = ServerStore(database)
            asked = 0
            while not asked:
                with database.read() as connection:
                    query = select(commands).where(commands.c.server_id == idle.server_id)
                    asked = len(connection.execute(query).all())
            servers.change(idle.server_id, lambda row: dataclasses.replace(row, created_at=1.0, last_seen_at=2.0))
        finally:
            database.close()
        assert taking.result() == 1
    said = capsys.readouterr().err
    assert "the agent of idle01 is silent for" in said
    assert "understudy-agent run" in said
    assert said.count("\n") == 1


def test_an_agent_whose_push_took_long_was_heard_at_its_end(service: Service, tmp_path: Path) -> None:
    """Whoever asks it for a point at that moment must not be told that it is silent."""
    agent = Agent(tmp_path / "agent", service)
    agent.enroll("web01")
    hostile, content = Hostile(agent, machine_id()), bytes(4 * BLOCK)
    session = hostile.begin(len(content)).document["session"]
    database = Database.open(sqlite_url(service.data / "understudy.sqlite"))
    try:
        servers = ServerStore(database)
        servers.change(agent.server_id, lambda row: dataclasses.replace(row, last_seen_at=1.0))  # it began long ago
        hostile.commit(session, [root_of(content)]).document  # noqa: B018  # asserts
        assert time.time() - (servers.get(agent.server_id).last_seen_at or 0.0) < SILENT_SECONDS
    finally:
        database.close()


def test_what_an_agent_was_asked_for_survives_a_kill_of_the_service(service: Service, daemon: Agent) -> None:
    run("understudy", "take", "web01", "--data", service.data, "--json").document  # noqa: B018  # asserts
    service.kill()
    database = Database.open(sqlite_url(service.data / "understudy.sqlite"))
    server = ServerStore(database).by_name("default", "web01")
    CommandStore(database).add("take-while-away", "default", server.id, "push", "asked while away")
    database.close()
    service.start()
    labels: list[str | None] = []
    while "asked while away" not in labels:
        run("understudy", "take", "web01", "--data", service.data, "--json").document  # noqa: B018  # asserts
        points = run("understudy", "points", "web01", "--data", service.data, "--json").document
        labels = [point["label"] for point in points]


def test_an_instance_that_was_handed_the_server_makes_the_daemon_stand_down(service: Service, daemon: Agent) -> None:
    run("understudy", "take", "web01", "--data", service.data, "--json").document  # noqa: B018  # asserts
    service.stop()
    database = Database.open(sqlite_url(service.data / "understudy.sqlite"))
    servers = ServerStore(database)
    server = servers.by_name("default", "web01")
    servers.change(server.id, lambda row: handed_to_instance(row, "instance", "failover-1", 1.0))
    database.close()
    service.start()
    complaint = daemon.push().complaint
    assert "failed over" in complaint
    assert "instance" in complaint
    (document,) = json.loads(run("understudy", "servers", "--data", service.data, "--json").out)
    assert (document["state"], document["owner"], document["epoch"]) == ("failed_over", "instance", 2)
    assert (document["stale"]["machine"], document["stale"]["since"] is not None) == (document["source"], True)


def test_a_source_that_cannot_stop_itself_is_not_taken_over_unless_it_is_declared_dead(
    service: Service, daemon: Agent
) -> None:
    run("understudy", "take", "web01", "--data", service.data, "--json").document  # noqa: B018  # asserts
    refused = run("understudy", "panic", "web01", "--fence", "--yes", "--data", service.data).complaint
    assert "allows no command 'fence'" in refused
    (document,) = json.loads(run("understudy", "servers", "--data", service.data, "--json").out)
    assert (document["state"], document["epoch"], document["stale"]) == ("protected", 1, None)
    (failed,) = json.loads(run("understudy", "runs", "--data", service.data, "--json").out)
    assert run("understudy", "end", failed["id"], "--data", service.data).code == 0
    assert daemon.push().code == 0
