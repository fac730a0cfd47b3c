"""Any bit of the rows about points may flip: in what a row says, in an index, in what SQLite keeps of either."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import text

from agent.protocol.errors import StorageError
from service.receiver.receiver import Receiver
from service.receiver.verify.database import verify_database
from service.store.database import Database
from service.store.points import PointStore
from tests.seeds import seeded
from tests.service.receiver.pushing import SERVER, Bench, Pusher, make_image
from tests.service.receiver.verify.rot import flip, verifier_of
from tests.service.store.rows_for_tests import add_server

ROW_BYTES = 420
"""Of a point with one volume; what stands before an id is the row's header."""


def opened(bench: Bench) -> Database:
    """The bench's receiver over its database as it is now, as after a start."""
    database = Database.open(f"sqlite:///{bench.folder / 'db.sqlite'}")
    bench.rows = PointStore(database, bench.archive.manifest)
    bench.receiver = Receiver(bench.site, bench.archive, bench.rows, bench.folder / "cache", reserve_bytes=0)
    return database


def database_of(bench: Bench) -> Path:
    """Its file, with all that was written in it."""
    bench.rows._database.close()
    path = bench.folder / "db.sqlite"
    with sqlite3.connect(path) as direct:
        direct.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    direct.close()
    return path


def somewhere(content: bytes, points: list[str], rng: random.Random) -> int:
    """A byte that has to do with a point: in its row, or in an index."""
    name = rng.choice(points).encode()
    places = [at for at in range(len(content)) if content.startswith(name, at)]
    return min(rng.choice(places) + rng.randrange(-40, ROW_BYTES), len(content) - 1)


@pytest.mark.parametrize("flips", [30, pytest.param(600, marks=[pytest.mark.long, pytest.mark.timeout(1800)])])
def test_points_are_listed_and_named_and_their_rows_made_again_whichever_bit_flips(
    bench: Bench, pusher: Pusher, flips: int
) -> None:
    rng = seeded()
    points = [pusher.push(make_image(2, seed)).id for seed in range(4)]
    path = database_of(bench)
    content = path.read_bytes()
    healed = 0
    for _ in range(flips):
        for left in bench.folder.glob("db.sqlite*"):
            left.unlink()
        path.write_bytes(content)
        at, bit = somewhere(content, points, rng), rng.randrange(8)
        flip(path, at, bit)
        print(f"byte {at} bit {bit}")
        healed += started_and_healed(bench, points)
    assert healed > flips * 0.9, "of few bits SQLite itself says that its file is malformed"


@pytest.mark.parametrize(
    ("column", "value"), [("id", "pt-nothing22"), ("id", b"\xff\xfe"), ("server_id", "srv-other"), ("sequence", 0)]
)
def test_rows_that_are_another_points_or_servers_or_out_of_order_are_put_right_by_a_push(
    bench: Bench, pusher: Pusher, column: str, value: object
) -> None:
    points = [pusher.push(make_image(2, seed)).id for seed in range(3)]
    add_server(bench.rows._database, id="srv-other", name="other")
    put = f"UPDATE points SET {column} = {'CAST(:v AS TEXT)' if column == 'id' else ':v'} WHERE id = :id"
    with bench.rows._database.write() as connection:
        connection.execute(text(put), {"v": value, "id": points[2]})
    begun = pusher.begin(make_image(2, 4))
    assert begun.volumes[0].point == points[2], "what is made now stands on the newest"
    assert [point.id for point in bench.rows.newest_first(SERVER.id)][:3] == points[::-1]


def test_an_index_that_leads_astray_is_named_and_made_anew(bench: Bench, pusher: Pusher) -> None:
    point = pusher.push(make_image(2, 1))
    path = database_of(bench)
    flip(path, path.read_bytes().rfind(point.id.encode()) + 5)  # behind the row comes the index of ids
    database = opened(bench)
    named = verify_database(database)
    assert [finding.healed for finding in named.findings] == [""] * len(named.findings) != []
    assert "index" in named.findings[0].what
    healed = verify_database(database, heal=True)
    assert healed.sound
    assert all(finding.healed for finding in healed.findings)
    assert verify_database(database).findings == []
    database.close()


def started_and_healed(bench: Bench, points: list[str]) -> bool:
    """False: the database says that it is broken, as a whole."""
    try:
        database = opened(bench)
    except StorageError:
        return False
    try:
        bench.receiver.recover()
        listed = [point.id for point in bench.rows.newest_first(SERVER.id)]
        verifier = verifier_of(bench)
        for server_id, point_id in verifier.records.known("default"):
            verdict = verifier.verify(server_id, point_id, heal=True)
            if not verdict.sound:
                assert all("malformed" in finding.what for finding in verdict.findings)
                return False
        assert listed == points[::-1]
        assert bench.rows.listed() == {SERVER.id: points}
        for point_id in points:
            assert bench.rows.get(point_id).point.root == bench.archive.manifest(SERVER.id, point_id).point.root
        if not verify_database(database, heal=True).sound:
            return False
        assert verify_database(database).findings == []
        begun = Pusher(bench).begin(make_image(2, 9))
        assert begun.volumes[0].point == points[-1]
        bench.receiver.abandon(SERVER.id, begun.session, "that was all")
    except StorageError as error:
        print(error)
        return False
    finally:
        database.close()
    return True
