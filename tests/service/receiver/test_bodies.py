"""How requests' bodies are read: whole, within their limit, and not waited for when nothing comes."""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from service.api.middleware import errors_as_json
from service.receiver import http
from service.receiver.http import read_body

LIMIT_BYTES = 1000


@pytest.fixture
async def port() -> AsyncIterator[int]:
    """Of a server that answers with the body it got."""

    async def echo(request: web.Request) -> web.Response:
        return web.Response(body=bytes(await read_body(request, LIMIT_BYTES)))

    app = web.Application(middlewares=[errors_as_json])
    app.router.add_post("/", echo)
    async with TestServer(app) as server:
        assert server.port is not None
        yield server.port


async def answer_to(port: int, head: str, *parts: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"POST / HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n".encode())
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0)
        said = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
        length = re.search(rb"(?i)content-length: (\d+)", said)
        assert length is not None
        return said + await reader.readexactly(int(length[1]))
    finally:
        writer.close()
        await writer.wait_closed()


async def test_a_body_comes_whole_however_it_is_cut(port: int) -> None:
    parts = [bytes([at]) * at for at in range(1, 30)]
    whole = b"".join(parts)
    assert (await answer_to(port, f"Content-Length: {len(whole)}", *parts)).endswith(b"\r\n\r\n" + whole)
    chunks = [b"%x\r\n%s\r\n" % (len(part), part) for part in parts]
    assert (await answer_to(port, "Transfer-Encoding: chunked", *chunks, b"0\r\n\r\n")).endswith(b"\r\n\r\n" + whole)


async def test_a_body_over_the_limit_is_refused_as_soon_as_that_shows(port: int) -> None:
    assert b"bad_frame" in await answer_to(port, f"Content-Length: {LIMIT_BYTES + 1}")
    assert b"bad_frame" in await answer_to(port, "Transfer-Encoding: chunked", b"7d0\r\n" + bytes(2000))


async def test_a_body_of_which_nothing_more_comes_is_given_up(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "SILENCE_SECONDS", 0.05)
    assert b'"code": "transport"' in await answer_to(port, "Content-Length: 100", b"some of it")


async def test_empty_bodies_come_to_an_end_each_time(port: int) -> None:
    """What aiohttp gives for them is one object for all requests, which remembers that it has been read."""
    for head in ("Content-Length: 0", "Accept: */*", "Content-Length: 0"):
        assert (await answer_to(port, head)).endswith(b"\r\n\r\n")


@pytest.mark.parametrize("body", [zlib.compress(bytes(900)), b"no such thing"])
async def test_a_body_that_is_packed_beyond_its_length_is_refused(port: int, body: bytes) -> None:
    """Room is made for as many bytes as the head says that there will be."""
    answer = await answer_to(port, f"Content-Encoding: deflate\r\nContent-Length: {len(body)}", body)
    assert b" 400 " in answer.splitlines()[0] and b"Content-Encoding" in answer
