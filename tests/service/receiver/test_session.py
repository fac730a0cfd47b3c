"""How many requests each of the open pushes may have under way."""

from __future__ import annotations

import pytest

from agent.protocol.messages import MAX_REQUESTS
from service.receiver.session import LEAST_REQUESTS, REQUESTS_OF_ALL, PushSession, SessionRegistry


def session(number: int) -> PushSession:
    return PushSession(
        id=f"pt-{number}",
        server_id=f"server-{number}",
        server_name=f"web{number}",
        tenant="main",
        epoch=1,
        machine_id="m",
        declared=[],
        heads=[],
        parent=None,
    )


@pytest.mark.parametrize(
    ("open_at_once", "each"), [(0, 8), (1, 8), (8, 8), (9, 7), (16, 4), (32, 2), (33, 2), (100, 2)]
)
def test_few_pushes_may_have_many_requests_under_way_and_many_pushes_few(open_at_once: int, each: int) -> None:
    sessions = SessionRegistry()
    pushes = [session(number) for number in range(open_at_once)]
    for push in pushes:
        sessions.add(push)
    assert sessions.requests_each() == each
    assert each == LEAST_REQUESTS or each * open_at_once <= REQUESTS_OF_ALL
    for push in pushes:
        sessions.drop(push, "it was committed")
    assert sessions.requests_each() == MAX_REQUESTS
