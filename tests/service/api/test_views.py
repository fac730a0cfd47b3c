from agent.protocol.errors import StorageError
from recovery.preflight import Proof
from service.api.views import (
    SILENT_SECONDS,
    damaged_to_json,
    point_to_json,
    server_proof_to_json,
    server_to_json,
    why_deaf,
)
from service.store.rows import ServerRow
from tests.service.store.rows_for_tests import manifest


def test_lag_is_the_age_of_the_newest_points_instant() -> None:
    row = ServerRow(id="s", tenant="t", name="web01", created_at=0.0)
    point = manifest("pt-1", taken_at="1970-01-01T00:01:40.000Z").point
    assert server_to_json(row, point, 130.5)["lag_seconds"] == 30.5
    assert server_to_json(row, point, 90.0)["lag_seconds"] == 0.0
    assert server_to_json(row, None, 90.0) | {"lag_seconds": None, "last_point": None} == server_to_json(
        row, None, 90.0
    )


def test_a_point_says_why_it_is_there_though_newer_ones_would_do() -> None:
    point = manifest("pt-1").point
    assert point_to_json(point, None)["held_because"] is None
    assert point_to_json(point, None, "run drill-1 needs it")["held_because"] == "run drill-1 needs it"


def test_points_and_servers_say_whether_they_were_proven_bootable_and_when() -> None:
    point = manifest("pt-1").point
    held, failed = Proof(run="drill-1", at=0.0, held=True), Proof(run="drill-2", at=60.0, held=False)
    shown = [(document["bootable"], document["proven_at"]) for document in (
        point_to_json(point, None), point_to_json(point, held), server_proof_to_json(None, None),
        server_proof_to_json(failed, held),
    )]  # fmt: skip
    assert shown == [
        (None, None),
        (True, "1970-01-01T00:00:00.000Z"),
        (None, None),
        (False, "1970-01-01T00:00:00.000Z"),
    ]


def test_a_command_to_an_agent_that_is_not_there_is_refused_at_once() -> None:
    never = ServerRow(id="s", tenant="t", name="web01", created_at=1000.0)
    silent = ServerRow(id="s", tenant="t", name="web01", created_at=0.0, last_seen_at=1000.0)
    late = 1000.0 + SILENT_SECONDS + 1
    for row, words in ((never, "never asked"), (silent, "silent for 121 s")):
        assert why_deaf(row, pushing=False, now=late - 1) is None
        assert why_deaf(row, pushing=True, now=late) is None
        assert words in str(why_deaf(row, pushing=False, now=late))


def test_a_server_whose_row_is_damaged_is_shown_with_all_fields_and_what_is_wrong() -> None:
    row = ServerRow(id="srv-1", tenant="default", name="web01", created_at=1.0)
    sound = server_to_json(row, None, 2.0) | server_proof_to_json(None, None)
    damaged = damaged_to_json("srv-1", "web01", StorageError("its epoch is 'x'", "restore it"))
    assert damaged.keys() == sound.keys()
    assert (sound["error"], damaged["error"]) == (None, "its epoch is 'x' (restore it)")
    assert damaged["state"] == "damaged"
