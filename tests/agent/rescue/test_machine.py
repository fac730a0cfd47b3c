"""The real machine's part, as far as it may be tried on one that is in use."""

import time

import pytest

from agent.inventory import machine_id
from agent.protocol.errors import UsageError
from agent.rescue.machine import RescueMachine


def test_it_describes_itself_in_a_line_that_names_its_uuid() -> None:
    described = RescueMachine().description()
    assert machine_id() in described
    assert described.isprintable()


def test_it_tells_its_disks_and_network_cards() -> None:
    machine = RescueMachine()
    assert all(disk.name.startswith("/dev/") and disk.size_bytes and disk.holds for disk in machine.disks())
    assert all(card != "lo" for card, _ in machine.addresses())
    assert machine.given_url() is None


@pytest.mark.parametrize(
    ("address", "gateway"), [("", ""), ("192.0.2.7", ""), ("192.0.2.7/99", ""), ("192.0.2.7/24", "x"), ("-h", "")]
)
def test_an_address_that_is_none_is_refused_before_anything_is_set(address: str, gateway: str) -> None:
    with pytest.raises(UsageError, match="cannot be used"):
        RescueMachine().set_address("eth99", address, gateway)


def test_a_clock_that_is_nearly_right_is_left_alone() -> None:
    assert RescueMachine().set_clock(time.time() + 5) is False
