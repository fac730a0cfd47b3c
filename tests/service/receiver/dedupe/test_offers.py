"""Whether a push has to offer what the replica does not have: only where something could be copied instead."""

from __future__ import annotations

import random

import pytest

from agent.protocol.digests import block_digest
from agent.protocol.frames import encode_blocks
from agent.protocol.messages import BlocksReply
from service.receiver.dedupe.index import ContentIndex
from tests.service.receiver.dedupe.estate import Estate, Machine
from tests.service.receiver.pushing import BLOCK

IMAGE = random.Random(1).randbytes(4 * BLOCK)


@pytest.fixture
def started(estate: Estate) -> Estate:
    """As a service has it that was started without points."""
    estate.receiver.recover()
    return estate


def test_the_first_server_of_a_tenant_need_not_offer(started: Estate) -> None:
    web = Machine(started, "web")
    begun = web.begin(IMAGE)
    assert not begun.offers
    assert not unasked(web, begun.session).offers
    assert started.content(web.commit(begun.session, IMAGE), web.id) == IMAGE


def test_who_comes_after_another_server_of_the_tenant_offers(started: Estate) -> None:
    Machine(started, "web").push(IMAGE)
    assert Machine(started, "db").begin(IMAGE).offers


def test_what_other_tenants_have_does_not_show(started: Estate) -> None:
    Machine(started, "web").push(IMAGE)
    assert not Machine(started, "db", tenant="other").begin(IMAGE).offers


def test_servers_that_begin_at_once_are_told_to_offer_as_soon_as_there_are_two(started: Estate) -> None:
    web, db, strange = Machine(started, "web"), Machine(started, "db"), Machine(started, "strange", tenant="other")
    first = web.begin(IMAGE).session
    strange.begin(IMAGE)
    assert not unasked(web, first).offers
    assert db.begin(IMAGE).offers
    assert unasked(web, first).offers


def test_a_push_that_was_cut_is_offered_again(started: Estate) -> None:
    web = Machine(started, "web")
    session = web.begin(IMAGE).session
    unasked(web, session)
    started.receiver.abandon(web.id, session, "cut")
    assert web.begin(IMAGE).offers


def test_until_the_index_is_filled_from_the_points_everything_is_offered(estate: Estate) -> None:
    web = Machine(estate, "web")
    assert web.begin(IMAGE).offers


def test_an_index_knows_the_tenants_that_it_has_hints_for(estate: Estate) -> None:
    index: ContentIndex = estate.index
    index.add("b", "srv", 0, [7], bytes([255]) * 32)
    index.add("a", "srv", 0, [7], bytes(32))  # a name, but nothing that could be copied
    assert [index.knows(tenant) for tenant in ("a", "b", "c")] == [False, True, False]


def unasked(machine: Machine, session: str) -> BlocksReply:
    """Send the image's blocks without having offered them."""
    parts = [IMAGE[at : at + BLOCK] for at in range(0, len(IMAGE), BLOCK)]
    body = encode_blocks(range(len(parts)), b"".join(map(block_digest, parts)), parts)
    return machine.estate.receiver.blocks(machine.id, session, 0, body)
