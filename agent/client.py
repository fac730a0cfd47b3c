"""The agent's connection to its service: TLS pinned to the service's own CA, errors translated, bytes counted.

Every request may be repeated: the protocol makes repeating harmless. `call` therefore tries again after a cut,
until `patience_seconds` have passed without one answer.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import random
import re
import ssl
import time
import urllib.parse
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from agent.lines import EACH, LinePool
from agent.pacing.pace import Pace
from agent.pieces import WORKERS
from agent.protocol.errors import (
    BadMessage,
    TransportError,
    TrustError,
    UnderstudyError,
    UsageError,
)
from agent.protocol.messages import BLOCKS_TYPE, PROTOCOL_VERSION, VERSION_HEADER, from_json, to_json
from agent.protocol.tokens import SERVICE_NAME
from agent.state import State
from agent.transport import ANSWER_SECONDS, BLOCKS_SECONDS, Buffer, WireCount
from agent.turns import Turns

DEFAULT_PATIENCE_SECONDS = 30.0
WORKERS_AHEAD = 2

T = TypeVar("T")


def pinned_context(ca_pem: str) -> ssl.SSLContext:
    """A TLS context that trusts one CA and nothing else."""
    context = ssl.create_default_context(cadata=ca_pem)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def unverified_context() -> ssl.SSLContext:
    """A TLS context that trusts whoever answers: for what is proven by other means, or needs no proof."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class ServiceClient:
    """Use as `async with ServiceClient.of(state) as client`."""

    def __init__(
        self,
        url: str,
        context: ssl.SSLContext,
        *,
        server_hostname: str | None = SERVICE_NAME,
        patience_seconds: float = DEFAULT_PATIENCE_SECONDS,
        pace: Pace | None = None,
    ) -> None:
        """`pace` limits what is sent. Raises UsageError for a URL that is not https."""
        if not url.startswith("https://"):  # a token or a disk's content must never travel in the clear
            raise UsageError(f"{url!r} is no https:// address", "it looks like https://HOST:8470")
        self._url = url.rstrip("/")
        self._patience_seconds = patience_seconds
        self._certificate_path: Path | None = None
        try:
            parts = urllib.parse.urlsplit(self._url)
            host, port = parts.hostname, parts.port or 443
        except ValueError:
            host = None
        if not host:
            raise UsageError(f"{url!r} is no address", "it looks like https://HOST:8470")
        self._lines = LinePool(host, port, context, server_hostname, pace)
        self._pace = pace
        self.sending = Turns(None)
        """Requests with blocks: who measures how long one takes must not count how long it waits here."""
        self.workers = Turns(WORKERS)
        """Those that read and pack for the requests: a little ahead of them, and no more, since each takes memory."""

    @property
    def wire(self) -> WireCount:
        return self._lines.wire

    @property
    def network_rate(self) -> float | None:
        """Bytes a second that we may send and the network takes, over all lines, lately; None until that is known."""
        allowed = self._pace.rate if self._pace is not None else None
        found = self._lines.network_rate
        return min((rate for rate in (allowed, found) if rate is not None), default=None)

    @property
    def receive_rate(self) -> float | None:
        """Bytes a second that each line brings, lately; None until that is known."""
        return self._lines.receive_rate

    @classmethod
    def of(cls, state: State, patience_seconds: float = DEFAULT_PATIENCE_SECONDS) -> Self:
        """A client with the identity that `state` holds. Raises UsageError, TrustError."""
        identity = state.identity()
        try:
            context = pinned_context(state.ca_path.read_text())
            context.load_cert_chain(state.certificate_path, state.key_path)
        except (OSError, ValueError) as error:  # ValueError: no text where a certificate should be
            raise TrustError(
                f"the identity in {state.folder} cannot be used: {error}",
                "enrol again: understudy-agent enroll URL TOKEN",
            ) from None
        client = cls(identity.url, context, patience_seconds=patience_seconds, pace=Pace(state.folder))
        client._certificate_path = state.certificate_path
        return client

    async def __aenter__(self) -> Self:
        self._lines.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pace is not None:
            self._pace.close()
        self._lines.close()

    def expect_much(self) -> None:
        """Much is about to be sent."""
        self._lines.expect_much()

    def allow_requests(self, most: int) -> None:
        """From now on about so many are under way at once. Among many pushes, to a service that is near, one on each
        line: a second would only wait for the first, and be taken for slow. A push that is alone has no limit here: its
        volumes keep theirs few themselves, so that each gets its share."""
        lines = -(-most // EACH)
        self._lines.keep(lines)
        under_way = most if self._lines.far or most >= WORKERS else lines
        self.sending.allow(under_way if under_way < WORKERS else None)
        self.workers.allow(min(under_way + WORKERS_AHEAD, WORKERS))

    async def ask(self, path: str, message: Any, reply: type[T], *, method: str = "POST") -> T:
        """Send a message, get one back. Raises what the service answered, or TransportError, TrustError."""
        body = b"" if message is None else json.dumps(to_json(message)).encode()
        return _message(reply, path, await self.call(method, path, [body], "application/json"))

    async def bring(self, path: str, body: Sequence[Buffer], reply: type[T]) -> T:
        """Send frames, a body in parts, and get a message back. Raises as ask() does."""
        return _message(reply, path, await self.call("POST", path, body, brief=True))

    async def call(
        self, method: str, path: str, body: Sequence[Buffer], content_type: str = BLOCKS_TYPE, *, brief: bool = False
    ) -> bytes:
        """One request, its body in parts, repeated while the line is down and patience lasts. `brief`: its answer will
        be short, so that others may follow it on its line."""
        first_failure: float | None = None
        delay_seconds = 0.2
        while True:
            try:
                return await self._once(method, path, body, content_type, brief)
            except TransportError:
                self._check_certificate()
                first_failure = first_failure or time.monotonic()
                if time.monotonic() - first_failure + delay_seconds > self._patience_seconds:
                    raise
                await asyncio.sleep(delay_seconds * random.uniform(0.5, 1.5))  # noqa: S311  # spreads load, no secret
                delay_seconds = min(delay_seconds * 2, 5.0)

    def _check_certificate(self) -> None:
        """A service that does not accept a certificate ends the line without a word that would reach us (TLS 1.3 lets
        a client begin before it hears). So after a cut we look ourselves. Raises TrustError."""
        if self._certificate_path is None:
            return
        from cryptography import x509  # only here, and it takes long to load

        certificate = x509.load_pem_x509_certificate(self._certificate_path.read_bytes())
        begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if begin <= datetime.now(UTC) <= end:
            return
        raise TrustError(
            f"{self._url} ends the connection, and this agent's certificate is valid only from {begin:%Y-%m-%d %H:%M} "
            f"to {end:%Y-%m-%d %H:%M} UTC",
            "check this machine's clock; if it is right, enrol again: understudy-agent enroll URL TOKEN",
        )

    async def _once(self, method: str, path: str, body: Sequence[Buffer], content_type: str, brief: bool) -> bytes:
        headers = {
            VERSION_HEADER: str(PROTOCOL_VERSION),
            "Content-Type": content_type,
            "Accept-Encoding": "identity",
        }
        silence_seconds = BLOCKS_SECONDS if content_type == BLOCKS_TYPE else ANSWER_SECONDS
        try:
            status, answer = await asyncio.wrap_future(
                self._lines.ask(method, path, body, headers, silence_seconds, brief=brief)
            )
        except (http.client.HTTPException, OSError) as error:
            raise _translated(self._url, error) from error
        if 200 <= status < 300:
            return answer
        raise _error_of(self._url, status, answer)


def _message(cls: type[T], path: str, answer: bytes) -> T:
    try:
        return from_json(cls, json.loads(answer))
    except ValueError:
        raise BadMessage(f"the service's answer to {path} is not JSON") from None


def _error_of(url: str, status: int, answer: bytes) -> UnderstudyError:
    try:
        return UnderstudyError.from_json(json.loads(answer))
    except ValueError:
        return TransportError(f"{url} answered HTTP {status}, and not as an Understudy service does", "check the URL")


def _translated(url: str, error: Exception) -> UnderstudyError:
    """Library errors as ours. OpenSSL tells its reasons only in words."""
    text = str(error)
    lower = text.lower().replace("_", " ")
    if "certificate expired" in lower or "certificate has expired" in lower:
        return TrustError(
            f"a certificate between this agent and {url} has expired",
            "check this machine's clock; if it is right, enrol again: understudy-agent enroll URL TOKEN",
        )
    if "not yet valid" in lower:
        return TrustError(f"the certificate of {url} is not valid yet", "check this machine's clock")
    if isinstance(error, ssl.SSLCertVerificationError) or "certificate verify failed" in lower:
        return TrustError(
            f"{url} is not the service that this agent was enrolled with: {_reason(text)}",
            "check the URL; if the service was installed anew, enrol again with a new token",
        )
    if (
        "unknown ca" in lower
        or "bad certificate" in lower
        or "certificate unknown" in lower
        or "decrypt error" in lower
    ):
        return TrustError(f"{url} does not accept this agent's certificate", "enrol again with a new token")
    if "wrong version number" in lower or "record layer failure" in lower or "unexpected message" in lower:
        return TransportError(f"what answers at {url} does not speak TLS", "check the URL and the port")
    if isinstance(error, http.client.HTTPException) and not isinstance(error, ConnectionError):
        return TransportError(
            f"the answer of {url} was cut short, or is no HTTP ({type(error).__name__})", "check the URL and the line"
        )
    return TransportError(f"{url} could not be reached: {_reason(text) or type(error).__name__}")


def _reason(text: str) -> str:
    """The words of an OSError or of OpenSSL, without the numbers around them."""
    return re.sub(r"^\[[^]]*\] | \(_ssl\.c:\d+\)$", "", text)
