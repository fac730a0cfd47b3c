from __future__ import annotations

import dataclasses
import json

import pytest

from agent.protocol.errors import Conflict, NotFound, RecoveryError, UsageError
from recovery.checks import SiteFacts
from recovery.describe import describe
from recovery.homeward import plan_failback
from recovery.planner import Order, plan_failover
from recovery.plans import Plan, default_plan, parse_plan, without
from recovery.runs import Run, RunKind, RunState, Step, StepState
from tests.recovery.memory_control import make_point, make_server
from tests.recovery.world import NOW, CountingIds

FACTS = SiteFacts(name="local", free_bytes=1 << 40, free_memory_mib=8_000)


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
        "await_forward",
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
    with pytest.raises(Conflict, match="has ended"):
        plan_failback(dataclasses.replace(run, state=RunState.ENDED), make_server(), CountingIds(), NOW)
    drill = failover(default_plan("web01"), RunKind.DRILL)
    with pytest.raises(Conflict, match="is a drill"):
        plan_failback(drill, make_server(), CountingIds(), NOW)


def actions(run: Run) -> list[tuple[str, list[str]]]:
    """Each step's name, and the names of those it comes after."""
    return [(step.name, [run.steps[at].name for at in step.after]) for step in run.steps]


def test_servers_of_a_group_boot_side_by_side_and_the_next_group_waits_for_all_of_them() -> None:
    run = failover(
        parse_plan(
            "{plan: p, groups: [{servers: [{name: a, gates: [{tcp: {port: 1}}]}, {name: b}]}, {servers: [{name: c}]}]}"
        ),
        RunKind.DRILL,
    )
    assert actions(run) == [
        ("launch a", []),
        ("launch b", []),
        ("gate a: a connection to port 1", ["launch a"]),
        ("launch c", ["gate a: a connection to port 1", "launch b"]),
    ]


def test_groups_that_name_what_they_come_after_wait_for_nothing_else() -> None:
    run = failover(
        parse_plan(
            "{plan: p, groups: [{name: web, after: [db, mq], servers: [{name: w}]},"
            " {name: db, after: [], servers: [{name: d}]}, {name: mq, after: [], servers: [{name: m}]}]}"
        ),
        RunKind.DRILL,
    )
    assert actions(run) == [("launch d", []), ("launch m", []), ("launch w", ["launch d", "launch m"])]


SCRIPTED = """
plan: p
on_failure: retry 2
pre: [{run: [announce]}]
groups:
- name: db
  wait_seconds: 5
  pre: [{run: [before-db], in_drills: true}]
  post: [{run: [after-db, now], on_failure: continue}]
  servers: [{name: d}]
post: [{run: [switch-dns]}]
"""


def test_a_server_that_is_left_out_holds_up_nobody() -> None:
    plan = without(
        parse_plan(
            "{plan: p, groups: [{servers: [{name: a}]},"
            " {servers: [{name: b}], wait_seconds: 5, post: [{run: [tell], in_drills: true}]}, {servers: [{name: c}]}]}"
        ),
        ["b"],
    )
    assert actions(failover(plan, RunKind.DRILL)) == [
        ("launch a", []),
        ("script tell after group 2", ["launch a"]),
        ("launch c", ["script tell after group 2"]),
    ]
    with pytest.raises(UsageError, match="has no server 'b'"):
        without(plan, ["b"])
    with pytest.raises(UsageError, match="nothing is left"):
        without(plan, ["a", "c"])


def test_scripts_and_waits_are_steps_and_most_scripts_are_not_for_drills() -> None:
    run = failover(parse_plan(SCRIPTED))
    assert [step.name for step in run.steps] == [
        "script announce before the plan",
        "script before-db before db",
        "fence d",
        "launch d",
        "wait after db",
        "script after-db after db",
        "script switch-dns after the plan",
    ]
    assert [step.after for step in run.steps] == [[], [0], [1], [2], [3], [4], [5]]
    assert describe(run.steps[4]) == "let 5 s pass after db"
    assert "run the script after-db now on the service's machine" in describe(run.steps[5])
    drill = failover(parse_plan(SCRIPTED), RunKind.DRILL)
    assert [step.name for step in drill.steps] == ["script before-db before db", "launch d", "wait after db"]


def test_a_rule_for_failures_reaches_each_step_but_nothing_boots_beside_an_unfenced_source() -> None:
    run = failover(parse_plan(SCRIPTED.replace("retry 2", "retry 2, then continue")))
    rules = {step.action: (step.retries, step.optional) for step in run.steps}
    assert rules["hand_to_instance"] == (2, False)
    assert rules["launch"] == (2, True)
    assert (run.steps[5].retries, run.steps[5].optional) == (0, True), "the script's own rule"


def test_boot_repair_comes_between_the_fence_and_the_launch_unless_the_plan_says_no() -> None:
    plan = parse_plan("{plan: p, groups: [{servers: [{name: a}, {name: b, repair: false}]}]}")
    facts = SiteFacts(name="local", free_bytes=1 << 40, repairs=True)
    run = failover(plan, facts=facts)
    assert actions(run) == [
        ("fence a", []),
        ("fence b", []),
        ("repair a", ["fence a"]),
        ("launch a", ["repair a"]),
        ("launch b", ["fence b"]),
    ]
    assert run.steps[2].args == run.steps[3].args, "the copy that is repaired is the one that is launched"


def test_copies_are_made_machines_of_their_own_although_they_would_boot_as_they_are() -> None:
    facts = dataclasses.replace(FACTS, repairs=True)
    servers = {"web01": dataclasses.replace(make_server("web01"), boots_on=("virtio",))}
    points = {"web01": [make_point("p-web01", "web01")]}

    def repairs(kind: RunKind, copies: int) -> list[Step]:
        order = Order(copies=copies)
        plan = default_plan("web01")
        run = plan_failover(plan, kind, servers, points, "latest", facts, CountingIds(), NOW, order)
        return [step for step in run.steps if step.action == "repair"]

    made = repairs(RunKind.CLONE, 2)
    assert [step.args["host_name"] for step in made] == ["web01-clone-1", "web01-clone-2"]
    assert len({step.args["record"] for step in made}) == 2
    assert all("skip" not in step.args and describe(step).endswith("rest goes on)") for step in made)
    assert "and a machine of its own, called web01-clone-1" in describe(made[0])
    (drilled,) = repairs(RunKind.DRILL, 1)
    assert "host_name" not in drilled.args
    assert drilled.args["skip"]


def test_copies_are_called_as_the_operator_says_but_no_two_alike() -> None:
    facts = dataclasses.replace(FACTS, repairs=True)
    servers = {name: make_server(name) for name in ("a", "b")}
    points = {name: [make_point(f"p-{name}", name)] for name in servers}
    plan = parse_plan("{plan: p, groups: [{servers: [{name: a}, {name: b}]}]}")

    def named(pattern: str) -> list[str]:
        order = Order(copies=2, host_names=pattern)
        run = plan_failover(plan, RunKind.CLONE, servers, points, "latest", facts, CountingIds(), NOW, order)
        return [step.args["host_name"] for step in run.steps if step.action == "repair"]

    assert named("{server}{copy}-test") == ["a1-test", "a2-test", "b1-test", "b2-test"]
    for pattern in ("test", "test-{copy}", "{server}"):
        with pytest.raises(UsageError, match="two copies would be called"):
            named(pattern)


def test_gates_that_ask_the_guests_agent_are_left_out_of_drills() -> None:
    plan = parse_plan("{plan: p, groups: [{servers: [{name: a, gates: [{heartbeat: {}}, {command: {name: ok}}]}]}]}")
    assert [step.action for step in failover(plan, RunKind.DRILL).steps] == ["launch"]
    assert [step.action for step in failover(plan).steps] == ["hand_to_instance", "launch", "gate", "gate"]


def test_the_launch_has_the_plans_network_and_address_for_its_mode() -> None:
    plan = parse_plan(
        "{plan: p, networks: {failover: net-1}, groups: [{servers: [{name: a, address: {failover: 10.0.0.7/24}}]}]}"
    )
    args = failover(plan).launches()[0].args
    assert (args["network"], args["network_name"], args["address"]) == ("real", "net-1", "10.0.0.7/24")
    args = failover(plan, RunKind.DRILL).launches()[0].args
    assert (args["network"], args["network_name"], args["address"]) == ("isolated", None, None)


def test_a_run_may_have_two_hundred_servers() -> None:
    groups = [
        {"servers": [{"name": f"s{group}-{n}", "gates": [{"tcp": {"port": 22}}]} for n in range(50)]}
        for group in range(4)
    ]
    run = failover(parse_plan(json.dumps({"plan": "large", "groups": groups})))
    assert len(run.steps) == 600
    assert all(earlier < position for position, step in enumerate(run.steps) for earlier in step.after)
