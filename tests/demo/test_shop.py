"""The verdict finds every way in which orders can go wrong."""

from __future__ import annotations

from demo.shop import Order, verdict

BEFORE, UNDERSTUDY = "onprem-uuid", "instance-uuid"


def order(number: int, machine: str, mark: str = "") -> Order:
    return Order(number=number, id=f"{machine}-{number}{mark}", taken_at="2030-01-01T00:00:00+00:00", machine=machine)


# Eight were acknowledged before the disaster, the point held six; the recovered server took 7 to 10, of which 10 came
# after our last look; home goes on with 11 and 12.
before = [order(n, BEFORE) for n in range(1, 9)]
recovered = before[:6] + [order(n, UNDERSTUDY) for n in range(7, 10)]
home = [*recovered, order(10, UNDERSTUDY), order(11, BEFORE, "b"), order(12, BEFORE, "b")]


def problems(home: list[Order]) -> list[str]:
    return [check.problem for check in verdict(before, recovered, home) if check.problem]


def test_all_as_it_should_be_has_no_problem_and_counts_right() -> None:
    assert problems(home) == []
    assert [check.count for check in verdict(before, recovered, home)] == [6, 3, 1, 2, 2, 0]


def test_an_order_from_before_the_disaster_that_is_missing_is_named() -> None:
    assert any(problem == "missing: 3" for problem in problems(home[:2] + home[3:]))


def test_an_order_of_the_recovered_server_that_is_missing_is_named() -> None:
    assert any(problem == "missing: 8" for problem in problems(home[:7] + home[8:]))


def test_an_order_that_changed_is_missing() -> None:
    changed = Order(number=2, id=home[1].id, taken_at=home[1].taken_at, machine="another")
    assert any("missing: 2" in problem for problem in problems([home[0], changed, *home[2:]]))


def test_an_order_that_is_there_twice_is_named() -> None:
    assert any("unexplained" in problem for problem in problems([*home[:4], home[3], *home[4:]]))


def test_the_stale_disk_instead_of_the_recovered_one_is_noticed() -> None:
    stale = [*before, *(order(n, BEFORE, "b") for n in range(9, 15))]
    assert any("missing: 7, 8, 9" in problem for problem in problems(stale))
    assert any("at home after all: 7, 8" in problem for problem in problems(stale))


def test_an_order_from_nowhere_is_named() -> None:
    assert any("unexplained" in p for p in problems([*home[:4], order(5, BEFORE, "forged"), *home[5:]]))


def test_a_server_that_takes_no_orders_at_home_is_a_problem() -> None:
    assert "it takes none" in problems(home[:10])
