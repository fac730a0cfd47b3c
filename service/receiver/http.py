"""The receiver's HTTP side: bodies in, bodies out; all work is done in threads of its own."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from typing import Any, Protocol, TypeVar

from aiohttp import web

from agent.protocol.errors import BadFrame, BadMessage, TransportError
from agent.protocol.frames import MAX_BLOCKS, MAX_PLAIN_BYTES, head_bytes
from agent.protocol.messages import (
    BLOCKS_TYPE,
    MAX_JSON_BYTES,
    BeginRequest,
    CommitRequest,
    Point,
    PulledReport,
    VolumeDeclaration,
    from_json,
    to_json,
)
from recovery.control import Server
from service.receiver.admission import Admission
from service.receiver.manifest import Manifest
from service.receiver.pull import COMPRESSION_LEVEL, Answer, PointReader
from service.receiver.receiver import Receiver

MAX_FRAME_BYTES = head_bytes(MAX_BLOCKS) + MAX_PLAIN_BYTES
SLICE_BYTES = 256 << 10
SILENCE_SECONDS = 30.0
"""A body that brings nothing for so long is given up: its room is for others. Agents send it again."""

T = TypeVar("T")

log = logging.getLogger(__name__)


class Caller(Protocol):
    """The agent at the other end, proven by its certificate."""

    @property
    def server_id(self) -> str: ...

    @property
    def serial(self) -> str: ...


class Gatekeeper(Protocol):
    """Who is calling, and what they may do. All but `agent_of` block."""

    def agent_of(self, request: web.Request) -> Caller:
        """Raises AuthError, TrustError."""
        ...

    def authorize_push(self, server_id: str, machine_id: str, serial: str) -> Server:
        """Raises StaleEpoch, AuthError."""
        ...

    def record_push(self, server_id: str, volumes: list[VolumeDeclaration]) -> None:
        """The owner made contact, and this is what it replicates."""
        ...

    def record_contact(self, server_id: str) -> None:
        """The owner was heard."""
        ...

    def point_of(self, server_id: str, point_id: str) -> Point:
        """A point of this server by id, or `latest`. Raises NotFound."""
        ...

    def record_pull(self, point_id: str, volume: int, report: PulledReport) -> None: ...


class ReceiverHttp:
    """Handlers under /agent/v1. Who calls is decided by the client certificate."""

    def __init__(self, receiver: Receiver, reader: PointReader, gatekeeper: Gatekeeper, threads: Executor) -> None:
        self._receiver = receiver
        self._reader = reader
        self._gatekeeper = gatekeeper
        self._threads = threads
        self._admission = Admission()

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/agent/v1/sessions", self._begin),
            web.get("/agent/v1/sessions/{session}/volumes/{volume}/segments", self._segments),
            web.post("/agent/v1/sessions/{session}/volumes/{volume}/offer", self._offer),
            web.post("/agent/v1/sessions/{session}/volumes/{volume}/blocks", self._blocks),
            web.post("/agent/v1/sessions/{session}/commit", self._commit),
            web.post("/agent/v1/sessions/{session}/abandon", self._abandon),
            web.get("/agent/v1/points/{point}", self._point),
            web.post("/agent/v1/points/{point}/volumes/{volume}/diff", self._diff),
            web.post("/agent/v1/points/{point}/volumes/{volume}/pages", self._pages),
            web.post("/agent/v1/points/{point}/volumes/{volume}/pulled", self._pulled),
        ]

    async def _begin(self, request: web.Request) -> web.Response:
        caller = self._gatekeeper.agent_of(request)
        message = await read_message(request, BeginRequest)

        def begin() -> Any:
            def authorize() -> Server:
                return self._gatekeeper.authorize_push(caller.server_id, message.machine_id, caller.serial)

            begun = self._receiver.begin(caller.server_id, authorize, message)
            self._gatekeeper.record_push(caller.server_id, message.volumes)
            return begun

        return web.json_response(to_json(await self._run(begin)))

    async def _segments(self, request: web.Request) -> web.Response:
        caller = self._gatekeeper.agent_of(request)
        session, volume = request.match_info["session"], volume_of(request)
        first = _number(request.query.get("first", "0"), "segment's number")
        digests = await self._run(lambda: self._receiver.segments(caller.server_id, session, volume, first))
        return web.Response(body=digests, content_type=BLOCKS_TYPE)

    async def _offer(self, request: web.Request) -> web.Response:
        caller = self._gatekeeper.agent_of(request)
        session, volume = request.match_info["session"], volume_of(request)
        sums = request.query.get("sums") == "1"
        answers = await self._run_with_body(
            request, lambda body: self._receiver.offer(caller.server_id, session, volume, body, with_sums=sums)
        )
        return web.Response(body=answers, content_type=BLOCKS_TYPE)

    async def _blocks(self, request: web.Request) -> web.Response:
        caller = self._gatekeeper.agent_of(request)
        session, volume = request.match_info["session"], volume_of(request)
        reply = await self._run_with_body(
            request, lambda body: self._receiver.blocks(caller.server_id, session, volume, body)
        )
        return web.json_response(to_json(reply))

    async def _commit(self, request: web.Request) -> web.Response:
        caller = self._gatekeeper.agent_of(request)
        session = request.match_info["session"]
        message = await read_message(request, CommitRequest)

        def authorize(machine_id: str) -> Server:
            server = self._gatekeeper.authorize_push(caller.server_id, machine_id, caller.serial)
            self._gatekeeper.record_contact(caller.server_id)  # a long push is over: its agent was not silent all along
            return server

        point = await self._run(lambda: self._receiver.commit(caller.server_id, session, authorize, message))
        log.info("point %s: its source stood still for %.3f s", point.id, message.frozen_seconds)
        return web.json_response(to_json(point))

    async def _abandon(self, request: web.Request) -> web.Response:
        caller = self._gatekeeper.agent_of(request)
        session = request.match_info["session"]
        await self._run(lambda: self._receiver.abandon(caller.server_id, session, "the agent gave up"))
        return web.json_response({})

    async def _point(self, request: web.Request) -> web.Response:
        caller = self._gatekeeper.agent_of(request)
        point = await self._run(lambda: self._gatekeeper.point_of(caller.server_id, request.match_info["point"]))
        return web.json_response(to_json(point))

    async def _diff(self, request: web.Request) -> web.StreamResponse:
        by_name, brief = (request.query.get(name) == "1" for name in ("pages", "brief"))
        return await self._pull(request, lambda *about: self._reader.differing(*about, by_name=by_name, brief=brief))

    async def _pages(self, request: web.Request) -> web.StreamResponse:
        return await self._pull(request, self._reader.pages)

    async def _pull(
        self, request: web.Request, read: Callable[[Manifest, int, bytearray, int], Answer]
    ) -> web.StreamResponse:
        caller = self._gatekeeper.agent_of(request)
        point_id, volume = request.match_info["point"], volume_of(request)
        level = _number(request.query.get("level", str(COMPRESSION_LEVEL)), "level")

        def work(body: bytearray) -> Answer:
            return read(self._receiver.archive.manifest(caller.server_id, point_id), volume, body, level)

        return await answered(request, (await self._run_with_body(request, work)).body())

    async def _pulled(self, request: web.Request) -> web.Response:
        caller = self._gatekeeper.agent_of(request)
        point_id, volume = request.match_info["point"], volume_of(request)
        report = await read_message(request, PulledReport)

        def record() -> Point:
            point = self._gatekeeper.point_of(caller.server_id, point_id)
            if not 0 <= volume < len(point.volumes) or report.root != point.volumes[volume].root:
                raise BadMessage(f"what was pulled is not volume {volume} of point {point_id}", "pull again")
            self._gatekeeper.record_pull(point.id, volume, report)
            return point

        return web.json_response(to_json(await self._run(record)))

    async def _run_with_body(self, request: web.Request, work: Callable[[bytearray], T]) -> T:
        length = MAX_FRAME_BYTES if request.content_length is None else request.content_length
        _check_length(length, MAX_FRAME_BYTES)
        async with self._admission.of(self._gatekeeper.agent_of(request).server_id, length):
            body = await read_body(request, MAX_FRAME_BYTES)
            return await self._run(lambda: work(body))

    def _run(self, work: Callable[[], T]) -> Awaitable[T]:
        return asyncio.get_running_loop().run_in_executor(self._threads, work)


async def read_body(request: web.Request, limit_bytes: int) -> bytearray:
    """The whole body, piece by piece as it comes. Raises BadFrame as soon as it is over the limit, TransportError."""
    _check_length(request.content_length or 0, limit_bytes)
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        # room was made for what the head says
        raise BadFrame("a body travels as it is: Content-Encoding has no place here")
    body = bytearray(request.content_length or 0)  # made once: growing it would move what has come again and again
    filled = 0
    clock = asyncio.get_running_loop().time
    try:
        async with asyncio.timeout(SILENCE_SECONDS) as patience:
            while not request.content.at_eof():  # iter_chunks never ends for the second empty body
                chunk, _ = await request.content.readchunk()  # what readany gives was joined first
                body[filled : filled + len(chunk)] = chunk
                filled += len(chunk)
                _check_length(filled, limit_bytes)
                patience.reschedule(clock() + SILENCE_SECONDS)
    except TimeoutError:
        raise TransportError(f"nothing came for {SILENCE_SECONDS:.0f} s after {filled} bytes of the body") from None
    except OSError:  # reset, or bytes that TLS found altered on the way
        raise TransportError(f"the line was cut after {filled} bytes of the body") from None
    del body[filled:]
    return body


def _check_length(size_bytes: int, limit_bytes: int) -> None:
    if size_bytes > limit_bytes:
        raise BadFrame(f"a body of {size_bytes} bytes or more is over the limit of {limit_bytes}")


async def answered(request: web.Request, body: Sequence[bytes | bytearray | memoryview]) -> web.StreamResponse:
    """Send a body in parts, a little at a time: TLS keeps a copy of what it was given until that is on its way."""
    if sum(map(len, body)) <= SLICE_BYTES:
        return web.Response(body=b"".join(body), content_type=BLOCKS_TYPE)
    response = web.StreamResponse()
    response.content_type = BLOCKS_TYPE
    response.content_length = sum(map(len, body))
    with contextlib.suppress(ConnectionError):  # who asked is gone, and asks again on another line
        await response.prepare(request)
        for part in body:
            for at in range(0, len(part), SLICE_BYTES):
                await response.write(memoryview(part)[at : at + SLICE_BYTES])
        await response.write_eof()
    return response


async def read_message(request: web.Request, cls: type[T], *, strict: bool = False) -> T:
    """The JSON message of a request. `strict`: a field that is not known is refused; agents of another version may send
    such, but an operator's `dryrun`, ignored, would do what was only to be shown. Raises BadMessage."""
    body = await read_body(request, MAX_JSON_BYTES)
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise BadMessage("the body is not JSON") from None
    message = from_json(cls, document)
    known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]  # T is always a dataclass here
    unknown = [name for name in document if name not in known]
    if strict and unknown:
        raise BadMessage(f"{cls.__name__} has no field {unknown[0][:100]!r}", f"known are {', '.join(known)}")
    return message


def volume_of(request: web.Request) -> int:
    return _number(request.match_info["volume"], "volume's number")


def _number(text: str, what: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise BadMessage(f"{text!r} is no {what}") from None
