"""Pairing by a short code, and what becomes of it when somebody sits in between."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spake2 import SPAKE2_A, SPAKE2_B

from agent.protocol.errors import BadMessage, PairingError, UsageError
from agent.protocol.pairing import ALPHABET, CODE_LENGTH, Answer, Code, MachineSide, ServiceSide

CODE = Code("K7MX4QRT")
OTHER_SECRET = Code("K7MX4QRA")  # the same nameplate


def test_both_ends_of_a_code_share_a_secret_that_one_seals_and_the_other_opens() -> None:
    machine = MachineSide(CODE, "QEMU Standard PC, 2 disks")
    service = ServiceSide(CODE, machine.opening)
    service.check(machine.proof(service.answer))
    assert machine.open(service.seal(b"the token")) == b"the token"


def test_a_mistyped_code_is_noticed_by_the_machine_and_shows_nothing() -> None:
    machine = MachineSide(CODE, "a machine")
    service = ServiceSide(OTHER_SECRET, machine.opening)
    with pytest.raises(PairingError, match="does not know this machine's code"):
        machine.proof(service.answer)


def test_a_machine_that_guesses_the_code_is_noticed_by_the_service() -> None:
    guessing = MachineSide(OTHER_SECRET, "a machine")
    service = ServiceSide(CODE, guessing.opening)
    for proof in ("", "00" * 32, service.answer.proof, "\N{SNOWMAN}"):
        with pytest.raises(PairingError):
            service.check(proof)


def test_somebody_in_between_who_answers_in_the_services_place_is_noticed() -> None:
    machine = MachineSide(CODE, "a machine")
    fake = ServiceSide(OTHER_SECRET, machine.opening)
    with pytest.raises(PairingError):
        machine.proof(fake.answer)


def test_somebody_in_between_who_opens_in_the_machines_place_gets_nothing_sealed() -> None:
    machine = MachineSide(CODE, "a machine")
    fake = MachineSide(OTHER_SECRET, machine.opening.machine)
    service = ServiceSide(CODE, fake.opening)
    with pytest.raises(PairingError):
        fake.proof(service.answer)
    with pytest.raises(PairingError):
        machine.proof(service.answer)  # and passing the answer on does not help: it is not about this opening


def test_a_message_that_was_exchanged_on_its_way_is_noticed() -> None:
    """Mallory passes everything on, but for one thing each time."""
    for change in ("nameplate", "machine"):
        machine = MachineSide(CODE, "a machine")
        altered = dataclasses.replace(machine.opening, **{change: "A7M" if change == "nameplate" else "another one"})
        service = ServiceSide(CODE, altered)
        with pytest.raises(PairingError):
            machine.proof(service.answer)
    machine = MachineSide(CODE, "a machine")
    service = ServiceSide(CODE, machine.opening)
    other = ServiceSide(CODE, machine.opening)
    with pytest.raises(PairingError):
        machine.proof(Answer(element=service.answer.element, proof=other.answer.proof))
    machine = MachineSide(CODE, "a machine")
    service = ServiceSide(CODE, machine.opening)
    service.check(machine.proof(service.answer))
    sealed = bytearray.fromhex(service.seal(b"the token"))
    sealed[3] ^= 1
    with pytest.raises(PairingError, match="altered"):
        machine.open(sealed.hex())
    with pytest.raises(PairingError, match="altered"):
        machine.open("no hex")


def test_what_was_recorded_is_good_for_no_other_exchange() -> None:
    first = MachineSide(CODE, "a machine")
    service = ServiceSide(CODE, first.opening)
    proof = first.proof(service.answer)
    sealed = service.seal(b"the token")
    again = ServiceSide(CODE, first.opening)  # the same opening, and the same code: still another secret
    with pytest.raises(PairingError):
        again.check(proof)
    second = MachineSide(CODE, "a machine")
    answered = ServiceSide(CODE, second.opening)
    answered.check(second.proof(answered.answer))
    with pytest.raises(PairingError):
        second.open(sealed)


def test_a_mirror_is_no_other_end() -> None:
    machine = MachineSide(CODE, "a machine")
    with pytest.raises(BadMessage):
        machine.proof(Answer(element=machine.opening.element, proof="00"))
    turned = "42" + machine.opening.element[2:]  # as if the service had said it
    machine = MachineSide(CODE, "a machine")
    with pytest.raises((BadMessage, PairingError)):
        machine.proof(Answer(element=turned, proof="00"))


@settings(max_examples=25, deadline=None)
@given(st.one_of(st.text(max_size=80), st.binary(max_size=40).map(bytes.hex)))
def test_an_element_that_is_none_is_refused(element: str) -> None:
    machine = MachineSide(CODE, "a machine")
    with pytest.raises((BadMessage, PairingError)):
        machine.proof(Answer(element=element, proof="00"))
    with pytest.raises((BadMessage, PairingError)):  # it may be one by chance, and then the proof is wrong
        ServiceSide(CODE, dataclasses.replace(machine.opening, element=element)).check("")


def test_elements_outside_the_group_are_refused() -> None:
    """Small orders would make the key one of few, whatever the code."""
    identity, order_two = "01" + "00" * 31, "ec" + "ff" * 30 + "7f"
    for element in (identity, order_two, "00" * 32):
        machine = MachineSide(CODE, "a machine")
        with pytest.raises(BadMessage):
            ServiceSide(CODE, dataclasses.replace(machine.opening, element="41" + element))
        with pytest.raises(BadMessage):
            machine.proof(Answer(element="42" + element, proof="00"))


def test_a_code_is_what_a_person_types_in_whatever_way() -> None:
    for typed in ("K7MX-4QRT", "k7mx4qrt", " k7 mx-4q rt ", "K7MX\t4QRT"):
        assert Code.parse(typed) == CODE
    assert Code.parse("ZBMX-4QRT") == Code("28MX4QRT")
    assert CODE.shown == "K7MX-4QRT"


@pytest.mark.parametrize("typed", ["", "K7MX-4QR", "K7MX-4QRTT", "K7MX-4QR0", "K7MX-4QRÖ", "K7MX-4QR1" * 1000])
def test_what_is_no_code_is_said_to_be_none(typed: str) -> None:
    with pytest.raises(UsageError, match="no pairing code"):
        Code.parse(typed)


def test_codes_are_drawn_from_the_whole_alphabet_and_hide_their_secret() -> None:
    drawn = [Code.new() for _ in range(400)]
    assert all(Code.parse(code.shown) == code for code in drawn)
    for position in range(CODE_LENGTH):
        assert len({code.text[position] for code in drawn}) > len(ALPHABET) * 0.8
    assert CODE.text[3:] not in repr(CODE)
    assert CODE.text[3:].encode() == CODE.password


def test_the_library_agrees_with_itself_on_both_sides() -> None:
    """What would break first if the library changed: elements of 33 bytes, sides told by their first."""
    a, b = SPAKE2_A(b"secret"), SPAKE2_B(b"secret")
    from_a, from_b = a.start(), b.start()
    assert (len(from_a), from_a[:1], len(from_b), from_b[:1]) == (33, b"A", 33, b"B")
    assert a.finish(from_b) == b.finish(from_a)


def test_a_description_cannot_write_on_the_operators_terminal() -> None:
    machine = MachineSide(CODE, "nice\x1b[2J\nmachine\0" + "x" * 1000)
    assert machine.opening.machine.startswith("nice [2J machine xxx")
    assert len(machine.opening.machine) == 200
