"""A run that stopped asks an operator: try again, go on behind what failed, or do without a source's word."""

from __future__ import annotations

import pytest

from agent.protocol.errors import Conflict, UsageError
from recovery.planner import Order
from recovery.plans import Plan, parse_plan, without
from recovery.runs import Run, RunKind, RunState, StepState
from tests.recovery.world import World

PLAN = """
plan: shop
groups:
- servers: [{name: db01, gates: [{console: {text: "ready", timeout_seconds: 1}}, {console: {text: "login:"}}]}]
- servers: [{name: web01, gates: [{console: {text: "login:"}}]}]
"""
ALIVE = Order(alive=frozenset({"db01"}))


@pytest.fixture
def shop() -> World:
    return World("db01", "web01")


def plan() -> Plan:
    return parse_plan(PLAN)


def states(run: Run) -> dict[str, StepState]:
    return {step.name: step.state for step in run.steps}


def test_what_failed_is_passed_over_and_the_rest_goes_on_in_a_run_that_stays_failed(shop: World) -> None:
    run = shop.perform(shop.plan(RunKind.FAILOVER, plan()))
    assert (run.state, states(run)["launch web01"]) == (RunState.FAILED, StepState.PENDING)
    shop.executor.retry(run.id, go_on=True)
    run = shop.executor.wait(run.id)
    assert run.state is RunState.FAILED, "not every gate held, and nobody shall believe so"
    assert [name for name, state in states(run).items() if state is not StepState.DONE] == [
        "gate db01: 'ready' on the console"
    ]
    assert shop.events.count("boot db01") == 1
    assert "passed over 'gate db01: 'ready' on the console'" in "\n".join(shop.control.audits)


def test_what_was_passed_over_can_be_tried_again(shop: World) -> None:
    run = shop.perform(shop.plan(RunKind.FAILOVER, plan()))
    (failure,) = [line for line in shop.control.audits if ": failed" in line]
    assert (
        "failed; 'gate db01: 'ready' on the console': db01: 'ready' on the console did not come within 1 s" in failure
    )
    shop.executor.retry(run.id, go_on=True)
    shop.executor.wait(run.id)
    shop.site.console_text = "ready\nlogin:"
    shop.executor.retry(run.id)
    assert shop.executor.wait(run.id).state is RunState.SUCCEEDED


def test_a_source_that_was_not_stopped_is_never_passed_over_and_may_be_declared_dead(shop: World) -> None:
    shop.site.console_text = "ready\nlogin:"
    shop.control.change("id-db01", last_seen_seconds=None)
    run = shop.perform(shop.plan(RunKind.FAILOVER, plan(), ALIVE))
    assert run.state is RunState.FAILED
    assert f"understudy retry {run.id} --declare-dead db01" in (run.steps[0].error or "")
    with pytest.raises(Conflict, match="two machines must never be db01"):
        shop.executor.retry(run.id, go_on=True)
    with pytest.raises(UsageError, match="does not wait for the source of 'web01'"):
        shop.executor.retry(run.id, dead=["web01"])
    shop.executor.retry(run.id, dead=["db01"])
    run = shop.executor.wait(run.id)
    assert run.state is RunState.SUCCEEDED
    assert run.launches()[0].result["point"] == "p-db01-1", "there was no last point"
    assert shop.control.server("acme", "db01").epoch == 2
    assert "db01 declared dead" in "\n".join(shop.control.audits)


def test_a_plan_with_a_server_that_another_run_has_can_go_on_without_it(shop: World) -> None:
    shop.fail_over()
    with pytest.raises(Conflict) as caught:
        shop.executor.start(shop.plan(RunKind.FAILOVER, plan()))
    assert caught.value.hint.endswith("; to take over the others: --without db01")
    with pytest.raises(Conflict) as caught:
        shop.fail_over()
    assert "--without" not in caught.value.hint
    others = shop.plan(RunKind.FAILOVER, without(plan(), ["db01"]))
    assert [launch.args["server"] for launch in shop.perform(others).launches()] == ["web01"]


def test_an_identity_that_changed_hands_is_not_passed_over(shop: World) -> None:
    run = shop.plan(RunKind.FAILOVER, plan())
    shop.control.change("id-db01", epoch=7)
    shop.perform(run)
    with pytest.raises(Conflict, match="cannot be passed over"):
        shop.executor.retry(run.id, go_on=True)
    assert shop.site.instances() == []


def test_no_step_of_a_way_home_is_passed_over(world: World) -> None:
    failback = world.plan_failback(world.fail_over())
    world.people_at_home_do_their_part()
    world.site.stubborn = 10_000
    assert world.perform(failback).state is RunState.FAILED
    with pytest.raises(Conflict, match="no step of a way home"):
        world.executor.retry(failback.id, go_on=True)
