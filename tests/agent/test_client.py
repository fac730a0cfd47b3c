"""How many requests a client has under way, by what the service allows and how far away it is."""

from __future__ import annotations

import asyncio
import contextlib
import ssl

import pytest

from agent.client import ServiceClient


async def under_way_of(client: ServiceClient, wanted: int) -> int:
    """So many of `wanted` requests with blocks begin before any of them ends."""
    begun = 0
    go_on = asyncio.Event()

    async def send() -> None:
        nonlocal begun
        async with client.sending.turn():
            begun += 1
            await go_on.wait()

    requests = [asyncio.ensure_future(send()) for _ in range(wanted)]
    for _ in range(3):
        await asyncio.sleep(0)
    at_once = begun
    go_on.set()
    await asyncio.gather(*requests)
    return at_once


@pytest.mark.parametrize(("allowed", "near", "far"), [(8, 10, 10), (7, 4, 7), (4, 2, 4), (2, 1, 2), (1, 1, 1)])
async def test_among_many_pushes_a_line_to_a_near_service_has_one_request_at_a_time(
    allowed: int, near: int, far: int
) -> None:
    client = ServiceClient("https://127.0.0.1:9", ssl.create_default_context())
    with contextlib.closing(client._lines) as lines:
        for is_far, expected in ((False, near), (True, far)):
            lines.far = is_far
            client.allow_requests(allowed)
            assert await under_way_of(client, 10) == expected
