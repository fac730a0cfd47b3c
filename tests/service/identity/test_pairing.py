"""Pairings under way: one attempt for each code, for a limited time, for a limited number."""

from __future__ import annotations

import dataclasses

import pytest

from agent.protocol.errors import BadMessage, Conflict, NotFound, PairingError
from agent.protocol.pairing import Answer, Code, MachineSide
from service.identity.pairing import LIFE_SECONDS, MOST, MOST_OF_ONE_ADDRESS, Pairings, PairingState

CODE = Code("K7MX4QRT")
OPENING = MachineSide(CODE, "a machine").opening


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pairings(clock: Clock) -> Pairings:
    return Pairings(clock)


def grant() -> bytes:
    return b"the token"


def answered(pairings: Pairings, pairing_id: str) -> Answer:
    answer = pairings.get(pairing_id).answer
    assert answer is not None
    return answer


def test_a_typed_code_pairs_the_machine_that_shows_it(pairings: Pairings) -> None:
    side = MachineSide(CODE, "a machine")
    opened = pairings.open(side.opening, "192.0.2.1")
    assert pairings.get(opened.id).answer is None
    typed = pairings.type(CODE, grant)
    assert (typed.id, typed.machine, typed.waits) == (opened.id, "a machine", True)
    proof = side.proof(answered(pairings, opened.id))
    sealed = pairings.prove(opened.id, proof)
    assert side.open(sealed) == b"the token"
    assert typed.state is PairingState.PAIRED
    assert pairings.prove(opened.id, proof) == sealed, "an answer that was lost on the line can be asked for again"


def test_an_opening_may_be_repeated_and_a_nameplate_is_one_machines(pairings: Pairings) -> None:
    side = MachineSide(CODE, "a machine")
    assert pairings.open(side.opening, "a") is pairings.open(side.opening, "a")
    with pytest.raises(Conflict):
        pairings.open(MachineSide(CODE, "another").opening, "b")


def test_a_code_that_no_machine_shows_is_named(pairings: Pairings) -> None:
    with pytest.raises(NotFound, match="no machine shows the code K7MX-4QRT"):
        pairings.type(CODE, grant)


def test_a_wrong_code_uses_up_the_attempt(pairings: Pairings) -> None:
    side = MachineSide(CODE, "a machine")
    opened = pairings.open(side.opening, "a")
    pairings.type(Code("K7MX4QRA"), grant)
    with pytest.raises(PairingError):
        side.proof(answered(pairings, opened.id))
    pairings.refuse(opened.id)
    with pytest.raises(PairingError, match="has been used"):
        pairings.type(CODE, grant)
    with pytest.raises(PairingError):
        pairings.prove(opened.id, "00")


def test_a_wrong_proof_uses_up_the_attempt_too(pairings: Pairings) -> None:
    granted: list[None] = []
    side = MachineSide(CODE, "a machine")
    opened = pairings.open(side.opening, "a")

    def counted() -> bytes:
        granted.append(None)
        return b"the token"

    pairings.type(CODE, counted)
    right = side.proof(answered(pairings, opened.id))
    with pytest.raises(PairingError):
        pairings.prove(opened.id, "00" * 32)
    with pytest.raises(PairingError):
        pairings.prove(opened.id, right)
    assert pairings.get(opened.id).state is PairingState.REFUSED
    assert granted == []


def test_a_proof_before_the_code_was_typed_is_refused(pairings: Pairings) -> None:
    opened = pairings.open(MachineSide(CODE, "a machine").opening, "a")
    with pytest.raises(PairingError, match="nobody typed"):
        pairings.prove(opened.id, "00")
    assert pairings.get(opened.id).state is PairingState.SHOWN


def test_an_opening_whose_element_is_none_ends_with_its_attempt(pairings: Pairings) -> None:
    opening = dataclasses.replace(MachineSide(CODE, "a machine").opening, element="41" + "00" * 32)
    opened = pairings.open(opening, "a")
    with pytest.raises(BadMessage):
        pairings.type(CODE, grant)
    assert pairings.get(opened.id).state is PairingState.REFUSED


def test_a_code_expires(pairings: Pairings, clock: Clock) -> None:
    opened = pairings.open(MachineSide(CODE, "a machine").opening, "a")
    clock.now += LIFE_SECONDS - 1
    assert pairings.get(opened.id)
    clock.now += 1
    for late in (
        lambda: pairings.get(opened.id),
        lambda: pairings.type(CODE, grant),
        lambda: pairings.prove(opened.id, "00"),
        lambda: pairings.refuse(opened.id),
    ):
        with pytest.raises(NotFound):
            late()
    assert pairings.open(MachineSide(CODE, "a machine").opening, "a").id != opened.id


def test_what_is_no_opening_is_refused(pairings: Pairings) -> None:
    good = MachineSide(CODE, "a machine").opening
    for changed in ({"nameplate": "K7"}, {"nameplate": ""}, {"machine": "a\nb"}, {"machine": "x" * 201}):
        with pytest.raises(BadMessage):
            pairings.open(dataclasses.replace(good, **changed), "a")


def test_one_address_has_few_and_all_together_have_a_limit(pairings: Pairings, clock: Clock) -> None:
    for number in range(MOST_OF_ONE_ADDRESS):
        _open(pairings, number, "a")
    with pytest.raises(PairingError, match="at a"):
        _open(pairings, 99, "a")
    for number in range(MOST_OF_ONE_ADDRESS, MOST):
        _open(pairings, number, f"address {number}")
    with pytest.raises(PairingError, match="wait to be paired already"):
        _open(pairings, MOST, "b")
    clock.now += LIFE_SECONDS
    assert _open(pairings, MOST, "a")


def test_codes_that_were_refused_keep_nobody_out_and_do_not_pile_up(pairings: Pairings) -> None:
    for number in range(MOST * 3):
        pairings.refuse(_open(pairings, number, "a"))
    assert len(pairings._pairings) <= 2 * MOST
    assert _open(pairings, MOST * 3, "a")


def _open(pairings: Pairings, number: int, address: str) -> str:
    opening = dataclasses.replace(OPENING, nameplate=f"{number:03}")
    return pairings.open(opening, address).id
