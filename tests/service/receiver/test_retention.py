"""Retention takes what nobody needs, leaves what somebody does, and says why."""

import logging

import pytest

from agent.protocol.errors import Conflict
from recovery.runs import Run, RunKind, RunState, Step
from service.receiver.retention import Retention
from tests.service.receiver.pushing import SERVER, Bench, Pusher, changed, make_image


def make_points(pusher: Pusher, count: int) -> list[str]:
    image, made = make_image(6, seed=0), []
    for seed in range(count):
        image = changed(image, seed, blocks=1)
        made.append(pusher.push(image).id)
    return made


def begin_run(bench: Bench, point_id: str, run_id: str = "drill-1") -> None:
    step = Step(name="launch web01", action="launch", args={"point": point_id, "instance_id": "i-1"})
    bench.runs.add(Run(id=run_id, tenant="default", kind=RunKind.DRILL, plan="web01", steps=[step]))


def retention(bench: Bench, keep: int) -> Retention:
    return Retention(bench.receiver, bench.rows, bench.runs.pins, keep)


def test_a_point_of_a_run_stays_from_when_the_run_is_made_until_it_has_ended(bench: Bench, pusher: Pusher) -> None:
    points = make_points(pusher, 5)
    begin_run(bench, points[1])
    keeper = retention(bench, keep=2)
    assert keeper.retain(SERVER.id) == [points[0], points[2]], "what is older or newer may go all the same"
    assert "drill-1" in (keeper.why_held(points[1]) or "")
    assert keeper.why_held(points[3]) is None
    for state in (RunState.FAILED, RunState.SUCCEEDED, RunState.ENDING):
        bench.runs.save_state("drill-1", state, None)
        assert keeper.retain(SERVER.id) == []
    bench.runs.save_state("drill-1", RunState.ENDED, 1.0)
    assert keeper.retain(SERVER.id) == [points[1]]
    assert keeper.why_held(points[1]) is None


def test_no_run_begins_on_a_point_that_is_being_removed(
    bench: Bench, pusher: Pusher, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = make_points(pusher, 3)
    remove, refused = bench.archive.remove, []

    def meanwhile(server_id: str, point_id: str) -> None:
        with pytest.raises(Conflict, match=point_id):
            begin_run(bench, point_id)
        refused.append(point_id)
        remove(server_id, point_id)

    monkeypatch.setattr(bench.archive, "remove", meanwhile)
    assert retention(bench, keep=2).retain(SERVER.id) == refused == [points[0]]
    with pytest.raises(Conflict, match="choose another"):
        begin_run(bench, points[0])
    begin_run(bench, points[1])


def test_what_an_instance_runs_from_and_all_below_it_stays_and_the_rest_goes(
    bench: Bench, pusher: Pusher, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = make_points(pusher, 6)
    monkeypatch.setattr(bench.site._instances, "points_in_use", lambda key: {points[1]})
    keeper = retention(bench, keep=2)
    assert keeper.retain(SERVER.id) == points[2:4]
    assert [point.id for point in bench.rows.newest_first(SERVER.id)] == [points[5], points[4], points[1], points[0]]
    for held in points[:2]:
        assert f"an instance runs from {points[1]}" in (keeper.why_held(held) or "")
    for point in points[4:]:
        bench.verify(bench.archive.manifest(SERVER.id, point))
    monkeypatch.undo()
    assert keeper.retain(SERVER.id) == points[:2]


def test_a_point_that_stays_is_logged_once_and_writes_nothing(
    bench: Bench, pusher: Pusher, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = make_points(pusher, 3)
    reading = bench.archive.open(bench.archive.manifest(SERVER.id, points[0]), 0)
    monkeypatch.setattr(bench.site, "write_document", lambda *_: pytest.fail("it is looked every few seconds"))
    keeper = retention(bench, keep=2)
    with caplog.at_level(logging.INFO, "service.receiver.retention"):
        for _ in range(3):
            assert keeper.retain(SERVER.id) == []
    assert len([record for record in caplog.records if points[0] in record.getMessage()]) == 1
    assert "being read" in (keeper.why_held(points[0]) or "")
    reading.close()


def test_while_a_push_is_under_way_the_points_that_wait_for_its_end_say_so(bench: Bench, pusher: Pusher) -> None:
    points = make_points(pusher, 3)
    pusher.begin(make_image(6, seed=0))
    keeper = retention(bench, keep=1)
    keeper.retain_all()
    assert [bool(keeper.why_held(point)) for point in points] == [True, True, False]
    assert "push" in (keeper.why_held(points[0]) or "")


def test_one_damaged_point_does_not_keep_the_others_from_going(bench: Bench, pusher: Pusher) -> None:
    points = make_points(pusher, 4)
    bench.site.write_document(SERVER.id, f"{points[0]}.json", b"rot")
    keeper = retention(bench, keep=2)
    assert keeper.retain(SERVER.id) == [points[1]]
    assert keeper.why_held(points[0])
