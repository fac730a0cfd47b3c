import dataclasses

import pytest

from service.identity.ownership import (
    Claim,
    StandDown,
    Take,
    claimed,
    decide,
    handed_home,
    handed_to_instance,
    settled,
)
from service.store.rows import CertificateRow, ServerRow, ServerState

PROTECTED, FAILED_OVER, FAILING_BACK = ServerState
OLD, NEW = 10.0, 30.0  # before and after the owner came


def server(state: ServerState = PROTECTED, owner: str | None = "owner", **fields: object) -> ServerRow:
    return ServerRow(
        **{"id": "s", "tenant": "t", "name": "web01", "created_at": 0.0, "state": state, "epoch": 4,  # type: ignore[arg-type]
           "owner_machine": owner, "owner_since": 20.0, "retired_machine": "retired", **fields}
    )  # fmt: skip


def certificate(machine: str, enrolled_at: float) -> CertificateRow:
    return CertificateRow(
        serial="1", tenant="t", server_id="s", machine_id=machine, enrolled_at=enrolled_at, not_after=9e9
    )


@pytest.mark.parametrize(
    ("state", "owner", "machine", "enrolled_by", "enrolled_at", "expected"),
    [
        # the owner, with whatever certificate
        (PROTECTED, "owner", "owner", "owner", OLD, Take()),
        (PROTECTED, "owner", "owner", "another", OLD, Take()),
        (FAILED_OVER, "owner", "owner", "another", OLD, Take()),
        (FAILING_BACK, "owner", "owner", "another", OLD, Take()),
        # the instance of a failover that went home
        (PROTECTED, "owner", "retired", "another", OLD, "gone home"),
        (PROTECTED, None, "retired", "another", OLD, "gone home"),
        (FAILING_BACK, None, "retired", "another", OLD, "gone home"),
        # while failed over, nobody but the instance
        (FAILED_OVER, "owner", "stranger", "stranger", OLD, "failed over"),
        (FAILED_OVER, "owner", "stranger", "stranger", NEW, "failed over"),
        (FAILED_OVER, "owner", "stranger", "another", NEW, "failed over"),
        # an open identity goes to the first that comes
        (PROTECTED, None, "stranger", "another", OLD, Claim(raises_epoch=False)),
        (FAILING_BACK, None, "stranger", "another", OLD, Claim(raises_epoch=False)),
        # somebody whom an operator let in later, who shows an enrolment of its own
        (PROTECTED, "owner", "stranger", "stranger", NEW, Claim(raises_epoch=True)),
        (PROTECTED, "owner", "stranger", "stranger", OLD, "belongs to machine owner now"),
        (FAILING_BACK, "owner", "stranger", "stranger", NEW, "belongs to machine owner now"),
        # a copy of somebody's state folder
        (PROTECTED, "owner", "stranger", "owner", OLD, "two agents with one identity"),
        (PROTECTED, "owner", "stranger", "owner", NEW, "two agents with one identity"),
        (FAILING_BACK, "owner", "stranger", "owner", NEW, "two agents with one identity"),
    ],
)
def test_who_may_push(
    state: ServerState, owner: str | None, machine: str, enrolled_by: str, enrolled_at: float, expected: object
) -> None:
    decision = decide(server(state, owner), machine, certificate(enrolled_by, enrolled_at))
    if isinstance(expected, str):
        assert isinstance(decision, StandDown)
        assert expected in decision.reason
        assert machine in decision.reason
        assert decision.hint
    else:
        assert decision == expected


def test_a_failover_and_the_way_home_raise_the_epoch_once_each_and_may_be_repeated() -> None:
    before = server(owner="home", retired_machine=None)
    over = handed_to_instance(before, "instance", "failover-1", 40.0)
    assert (over.state, over.epoch, over.owner_machine) == (FAILED_OVER, 5, "instance")
    assert handed_to_instance(over, "instance", "failover-1", 50.0) == over
    home = handed_home(over, "instance", "failback-1")
    assert (home.state, home.epoch, home.owner_machine, home.retired_machine) == (FAILING_BACK, 6, None, "instance")
    assert handed_home(home, "instance", "failback-1") == home
    assert not home.home_arrived
    arrived = claimed(home, "home", raises_epoch=False, now=60.0)
    assert (arrived.home_arrived, arrived.owner_machine, arrived.epoch) == (True, "home", 6)
    done = settled(arrived, "failback-1")
    assert done == dataclasses.replace(arrived, state=PROTECTED)
    assert settled(done, "failback-1") == done


def test_a_failback_that_is_called_off_gives_the_identity_back_to_the_instance() -> None:
    over = handed_to_instance(server(owner="home"), "instance", "failover-1", 40.0)
    home = handed_home(over, "instance", "failback-1")
    again = handed_to_instance(home, "instance", "failback-1.end", 50.0)
    assert decide(again, "instance", certificate("home", OLD)) == Take()
    assert isinstance(decide(again, "home", certificate("home", OLD)), StandDown)


def test_a_failover_that_was_given_up_leaves_the_identity_to_whoever_comes_first() -> None:
    over = handed_to_instance(server(owner="home"), "instance", "failover-1", 40.0)
    ended = settled(handed_home(over, "instance", "failover-1.end"), "failover-1.end")
    assert ended.state is PROTECTED
    assert decide(ended, "home", certificate("home", OLD)) == Claim(raises_epoch=False)


def test_only_the_run_that_handed_home_settles() -> None:
    home = handed_home(server(), "instance", "failback-2")
    assert settled(home, "failback-1") == home
