from __future__ import annotations

import dataclasses
import json

import pytest

from agent.protocol.errors import Conflict, NotFound, RecoveryError, UsageError
from recovery.checks import ADVISED_BYTES_PER_INSTANCE, Level, Reason, SiteFacts, preflight
from recovery.planner import choose_point, describe, plan_failback, plan_failover
from recovery.plans import Group, Plan, PlanServer, default_plan, parse_plan
from recovery.runs import Run, RunKind, RunState, StepState
from tests.recovery.world import NOW, CountingIds, make_point, make_server

POINTS = [
    make_point("abcd-3", taken_at="2027-01-15T07:00:00+00:00"),
    make_point("abcd-2", taken_at="2027-01-15T06:00:00+00:00"),
    make_point("wxyz-1", taken_at="2027-01-15T05:00:00+00:00"),
]
FACTS = SiteFacts(name="local", free_bytes=1 << 40, free_memory_mib=8_000)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("latest", "abcd-3"),
        ("abcd-2", "abcd-2"),
        ("wxyz", "wxyz-1"),
        ("2027-01-15T06:30:00Z", "abcd-2"),
        ("2027-01-15T06:00:00", "abcd-2"),
        ("2027-01-15T07:59:00+02:00", "wxyz-1"),
        ("2099-01-01", "abcd-3"),
    ],
)
def test_a_point_is_chosen_by_newest_id_beginning_or_time(choice: str, expected: str) -> None:
    assert choose_point("web01", POINTS, choice).id == expected


@pytest.mark.parametrize(
    ("choice", "kind", "words"),
    [
        ("nonsense", NotFound, "no point 'nonsense' of web01"),
        ("abc", NotFound, "no point 'abc'"),
        ("abcd", UsageError, "abcd-3, abcd-2"),
        ("2027-01-15T04:59:59Z", NotFound, "the oldest is wxyz-1"),
    ],
)
def test_a_point_that_cannot_be_told_is_refused_naming_what_there_is(
    choice: str, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        choose_point("web01", POINTS, choice)


def test_a_server_without_points_cannot_be_recovered() -> None:
    with pytest.raises(NotFound, match="no recovery point of web01"):
        choose_point("web01", [], "latest")


def failover(plan: Plan, kind: RunKind = RunKind.FAILOVER, facts: SiteFacts = FACTS) -> Run:
    names = [server.name for server in plan.servers]
    servers = {name: make_server(name) for name in names}
    points = {name: [make_point(f"p-{name}", name, volumes=2)] for name in names}
    return plan_failover(plan, kind, servers, points, "latest", facts, CountingIds(), NOW)


def test_the_same_input_gives_the_same_steps() -> None:
    assert failover(default_plan("web01")) == failover(default_plan("web01"))


def test_a_drill_touches_neither_the_epoch_nor_the_real_network() -> None:
    run = failover(default_plan("web01"), RunKind.DRILL)
    assert [step.action for step in run.steps] == ["launch", "gate"]
    assert run.steps[0].args["network"] == "isolated"


def test_a_failover_fences_the_source_before_it_boots_anything() -> None:
    run = failover(default_plan("web01"))
    assert [step.action for step in run.steps] == ["hand_to_instance", "launch", "gate"]
    assert run.steps[1].args["network"] == "real"
    assert run.steps[0].args["machine_id"] == run.steps[1].args["machine_id"]


def test_groups_come_one_after_the_other_with_their_gates_between() -> None:
    plan = parse_plan(
        "{plan: shop, groups: [{servers: [{name: db, gates: [{console: {text: up}}]}, {name: mq}]},"
        " {servers: [{name: web, gates: [{http: {port: 80}}]}]}]}"
    )
    run = failover(plan)
    assert [step.name for step in run.steps] == [
        "fence db",
        "fence mq",
        "launch db",
        "launch mq",
        "gate db: 'up' on the console",
        "fence web",
        "launch web",
        "gate web: HTTP 200 from port 80 /",
    ]
    assert run.steps[6].args["ports"] == {"80": 0}


def test_steps_survive_json_unchanged() -> None:
    run = failover(
        parse_plan("{plan: p, groups: [{servers: [{name: a, ports: {22: 0}, gates: [{http: {port: 80}}]}]}]}")
    )
    for step in run.steps:
        assert json.loads(json.dumps(step.args)) == step.args


def test_a_dry_run_is_one_line_for_each_step() -> None:
    run = failover(parse_plan("{plan: p, groups: [{servers: [{name: a, gates: [{http: {port: 80, contains: ok}}]}]}]}"))
    assert [describe(step) for step in run.steps] == [
        "a: raise the epoch: only i-2 may push from here on, a source that returns stands down",
        "a: boot point p-a of 2027-01-15T07:00:00+00:00 (2 volumes) as i-2 with 2 CPUs and 1024 MiB"
        " on the real network, its port 80 at any port",
        "a: wait up to 300 s for HTTP 200 containing 'ok' from port 80 /",
    ]


def test_a_plan_with_a_server_that_nobody_protects_is_refused_naming_those_there_are() -> None:
    with pytest.raises(NotFound, match=r"no server 'db01' is protected \(there are: web01\)"):
        plan_failover(
            default_plan("db01"), RunKind.DRILL, {"web01": make_server()}, {}, "latest", FACTS, CountingIds(), NOW
        )


def test_a_site_without_space_refuses_before_the_first_step() -> None:
    with pytest.raises(RecoveryError, match="has 1 MiB left"):
        failover(default_plan("web01"), facts=SiteFacts(name="local", free_bytes=1 << 20))


def test_what_only_might_go_wrong_is_told_and_does_not_stop_anybody() -> None:
    plan = Plan(name="p", groups=(Group(servers=(PlanServer(name="web01", memory_mib=4_096),)),))
    facts = SiteFacts(name="local", free_bytes=ADVISED_BYTES_PER_INSTANCE - 1, free_memory_mib=512)
    old = make_point("p", taken_at="2027-01-01T00:00:00+00:00")
    findings = preflight(plan, {"web01": old}, facts, NOW)
    assert {finding.reason for finding in findings} == set(Reason)
    assert {finding.level for finding in findings} == {Level.AMBER}
    assert failover(plan, facts=facts).steps
    assert preflight(plan, {"web01": POINTS[0]}, FACTS, NOW) == []


def test_the_way_home_is_sync_shut_down_last_delta_handover_boot_retire() -> None:
    run = failover(default_plan("web01"))
    run.state = RunState.SUCCEEDED
    run.steps[1].state = StepState.DONE
    back = plan_failback(run, make_server(), CountingIds(), NOW)
    assert [step.action for step in back.steps] == [
        "take_point",
        "await_pull",
        "shut_down",
        "capture",
        "await_pull",
        "hand_home",
        "await_home",
        "settle",
        "retire",
    ]
    assert back.failover_run == run.id
    assert all(describe(step).startswith("web01: ") for step in back.steps)
    assert {step.args["instance_id"] for step in back.steps} == {run.steps[1].args["instance_id"]}


def test_only_a_failover_that_has_come_up_can_be_brought_home() -> None:
    run = failover(default_plan("web01"))
    with pytest.raises(Conflict, match="is running"):
        plan_failback(run, make_server(), CountingIds(), NOW)
    run.state = RunState.FAILED
    with pytest.raises(Conflict, match="never got web01 to boot"):
        plan_failback(run, make_server(), CountingIds(), NOW)
    with pytest.raises(NotFound, match="did not boot other"):
        plan_failback(run, make_server("other"), CountingIds(), NOW)
    with pytest.raises(Conflict, match="is ended"):
        plan_failback(dataclasses.replace(run, state=RunState.ENDED), make_server(), CountingIds(), NOW)
    drill = failover(default_plan("web01"), RunKind.DRILL)
    with pytest.raises(Conflict, match="is a drill"):
        plan_failback(drill, make_server(), CountingIds(), NOW)
