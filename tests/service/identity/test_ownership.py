import pytest

from agent.protocol.errors import Conflict
from service.identity.ownership import (
    Claim,
    StandDown,
    Take,
    claimed,
    decide,
    given_back,
    handed_home,
    handed_to_instance,
    settled,
    source_retired,
    stood_down,
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
        (PROTECTED, "owner", "retired", "another", OLD, "was retired"),
        (PROTECTED, None, "retired", "another", OLD, "was retired"),
        (FAILING_BACK, None, "retired", "another", OLD, "was retired"),
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
    over = handed_to_instance(before, "instance", "failover-1", 40.0, epoch=4)
    assert (over.state, over.epoch, over.owner_machine, over.source_machine) == (FAILED_OVER, 5, "instance", "home")
    assert handed_to_instance(over, "instance", "failover-1", 50.0, epoch=4) == over
    home = handed_home(over, "instance", "failback-1", 45.0)
    assert (home.state, home.epoch, home.owner_machine, home.retired_machine) == (FAILING_BACK, 6, None, "instance")
    assert handed_home(home, "instance", "failback-1", 46.0) == home
    assert not home.home_arrived
    arrived = claimed(home, "home", raises_epoch=False, now=60.0)
    assert (arrived.home_arrived, arrived.owner_machine, arrived.epoch) == (True, "home", 6)
    done = settled(arrived, "failback-1", 70.0)
    assert (done.state, done.state_since, done.owner_machine, done.source_machine) == (PROTECTED, 70.0, "home", None)
    assert settled(done, "failback-1", 80.0) == done


def test_a_failback_that_is_called_off_gives_the_identity_back_to_the_instance() -> None:
    over = handed_to_instance(server(owner="home"), "instance", "failover-1", 40.0)
    home = handed_home(over, "instance", "failback-1", 45.0)
    again = handed_to_instance(home, "instance", "failback-1.end", 50.0)
    assert decide(again, "instance", certificate("home", OLD)) == Take()
    told = decide(again, "home", certificate("home", OLD))
    assert isinstance(told, StandDown)
    assert told.was_the_server
    assert given_back(again, "instance", "failover-1.end", 60.0).owner_machine == "home"


def test_a_failover_that_was_undone_makes_its_source_the_server_again_with_a_new_epoch() -> None:
    over = handed_to_instance(server(owner="home"), "instance", "failover-1", 40.0)
    ended = given_back(over, "instance", "failover-1.end", 50.0)
    assert (ended.state, ended.epoch, ended.owner_machine) == (PROTECTED, 6, "home")
    assert given_back(ended, "instance", "failover-1.end", 60.0) == ended
    assert decide(ended, "home", certificate("home", OLD)) == Take()
    assert isinstance(decide(ended, "instance", certificate("home", OLD)), StandDown)


def test_who_was_overtaken_takes_nothing_over() -> None:
    planned_at = server(owner="home")
    overtaken = claimed(planned_at, "another", raises_epoch=True, now=30.0)
    with pytest.raises(Conflict, match="has changed hands since failover-1 was planned"):
        handed_to_instance(overtaken, "instance", "failover-1", 40.0, epoch=planned_at.epoch)


def test_the_late_words_of_an_instance_that_is_not_the_owner_change_nothing() -> None:
    first = handed_to_instance(server(owner="home"), "instance-1", "failover-1", 40.0)
    second = handed_to_instance(given_back(first, "instance-1", "failover-1.end", 50.0), "i-2", "failover-2", 60.0)
    assert given_back(second, "instance-1", "failover-1.end", 70.0) == second
    assert handed_home(second, "instance-1", "failback-1", 70.0) == second
    assert source_retired(second, "instance-1", 70.0) == second


def test_a_migration_leaves_the_instance_the_server_and_its_source_stands_down_for_good() -> None:
    over = handed_to_instance(server(owner="home"), "instance", "migrate-1", 40.0)
    moved = source_retired(over, "instance", 50.0)
    assert (moved.state, moved.owner_machine, moved.epoch) == (PROTECTED, "instance", over.epoch)
    told = decide(moved, "home", certificate("home", NEW + 100))
    assert isinstance(told, StandDown)
    assert told.was_the_server
    assert decide(moved, "instance", certificate("home", OLD)) == Take()


def test_a_machine_that_came_back_is_remembered_since_its_first_contact_with_what_it_stopped() -> None:
    first = stood_down(server(), "old", None, 10.0)
    again = stood_down(stood_down(first, "old", "nginx stopped", 20.0), "old", None, 30.0)
    assert again.stale == {"machine": "old", "since": 10.0, "seen_at": 30.0, "fenced": "nginx stopped"}


def test_only_the_run_that_handed_home_settles() -> None:
    home = handed_home(server(owner="instance"), "instance", "failback-2", 40.0)
    assert settled(home, "failback-1", 50.0) == home
