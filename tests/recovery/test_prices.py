from __future__ import annotations

import pytest

from agent.protocol.errors import RecoveryError
from recovery.plans import Caps
from recovery.prices import RunPrice, add_up, over_caps, used
from recovery.runs import RunKind, RunState
from recovery.sites.contract import Price
from tests.recovery.world import NOW, World


def price(instances: int, per_hour: float | None = None, *, known: bool = True) -> RunPrice:
    prices = [Price(memory_mib=1024, cpus=2, per_hour=per_hour, known=known) for _ in range(instances)]
    return add_up(prices, disk_bytes=instances << 30)


def test_a_runs_price_is_what_its_instances_use_together() -> None:
    assert price(3, 0.1).to_json() == {
        "instances": 3,
        "cpus": 6,
        "memory_mib": 3072,
        "disk_bytes": 3 << 30,
        "per_hour": 0.3,
        "currency": "USD",
        "known": True,
    }
    assert price(2).per_hour is None


@pytest.mark.parametrize(
    ("wanted", "caps", "already", "words"),
    [
        (price(3), Caps(), [], ""),
        (price(3), Caps(instances=3), [], ""),
        (price(4), Caps(instances=3), [], "4 instances are more than plan p allows (3)"),
        (price(2), Caps(instances=3), [price(2)], "2 instances beside the 2 that run are more than plan p allows (3)"),
        (price(2, 1.0), Caps(price_per_hour=2.0), [], ""),
        (price(2, 1.0), Caps(price_per_hour=2.5), [price(1, 1.0)], "3 USD an hour are more than plan p allows (2.5)"),
        (price(1, known=False), Caps(price_per_hour=9.0), [], "plan p allows 9 an hour, and the price is not known"),
    ],
)
def test_a_cap_that_would_be_exceeded_is_named(
    wanted: RunPrice, caps: Caps, already: list[RunPrice], words: str
) -> None:
    assert "; ".join(over_caps(wanted, caps, "plan p", already)) == words


def test_a_run_over_a_cap_is_refused_before_its_first_step(world: World) -> None:
    first = priced(world)
    world.executor.start(first, tenant_caps=Caps(instances=1))
    world.executor.wait(first.id)
    second = priced(world)
    with pytest.raises(RecoveryError, match="1 instance beside the 1 that runs is more") as caught:
        world.executor.start(second, tenant_caps=Caps(instances=1))
    assert "--over-cap" in caught.value.hint
    assert second.id not in world.store.rows
    assert world.events == ["boot web01"]


def test_a_reason_lets_it_pass_and_is_written_down(world: World) -> None:
    run = priced(world)
    run.over_cap = "the auditors are here"
    world.executor.start(run, plan_caps=Caps(price_per_hour=0.1))
    assert world.executor.wait(run.id).over_cap == "the auditors are here"
    assert any("because the auditors are here: 0.5 USD an hour are more" in line for line in world.control.audits)


def test_what_a_run_used_is_counted_until_it_has_ended(world: World) -> None:
    run = priced(world)
    world.executor.start(run)
    world.executor.wait(run.id)
    world.clock.seconds += 1800
    world.executor.end(run.id)
    ended = world.executor.wait(run.id)
    assert ended.state is RunState.ENDED
    assert used(ended, NOW + 999_999) == {"instance_hours": 0.5, "memory_mib_hours": 512.0, "cost": 0.25}


def priced(world: World):  # type: ignore[no-untyped-def]
    run = world.plan(RunKind.DRILL)
    run.price = price(1, 0.5).to_json()
    return run
