"""The agent's connection to its service: TLS pinned to the service's own CA, errors translated, bytes counted.

Every request may be repeated: the protocol makes repeating harmless. `call` therefore tries again after a cut,
until `patience_seconds` have passed without one answer.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import ssl
import time
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import aiohttp
from cryptography import x509

from agent.protocol.errors import (
    BadMessage,
    TransportError,
    TrustError,
    UnderstudyError,
    UsageError,
)
from agent.protocol.messages import PROTOCOL_VERSION, VERSION_HEADER, from_json, to_json
from agent.protocol.tokens import SERVICE_NAME
from agent.state import State
from agent.wire import WireCount, counting_socket_factory

DEFAULT_PATIENCE_SECONDS = 30.0
_CONNECTIONS = 6

T = TypeVar("T")


def pinned_context(ca_pem: str) -> ssl.SSLContext:
    """A TLS context that trusts one CA and nothing else."""
    context = ssl.create_default_context(cadata=ca_pem)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
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
    ) -> None:
        """Raises UsageError for a URL that is not https."""
        if not url.startswith("https://"):  # a token or a disk's content must never travel in the clear
            raise UsageError(f"{url!r} is no https:// address", "it looks like https://HOST:8470")
        self._url = url.rstrip("/")
        self._context = context
        self._server_hostname = server_hostname
        self._patience_seconds = patience_seconds
        self._certificate_path: Path | None = None
        self._http: aiohttp.ClientSession | None = None
        self.wire = WireCount()

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
        client = cls(identity.url, context, patience_seconds=patience_seconds)
        client._certificate_path = state.certificate_path
        return client

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(
            limit=_CONNECTIONS, ssl=self._context, socket_factory=counting_socket_factory(self.wire)
        )
        self._http = aiohttp.ClientSession(
            connector=connector,
            auto_decompress=False,
            headers={VERSION_HEADER: str(PROTOCOL_VERSION), "Accept-Encoding": "identity"},
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=15, sock_read=120),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._http is not None:
            await self._http.close()
            self._http = None

    async def ask(self, path: str, message: Any, reply: type[T], *, method: str = "POST") -> T:
        """Send a JSON message, get one back. Raises what the service answered, or TransportError, TrustError."""
        body = b"" if message is None else json.dumps(to_json(message)).encode()
        answer = await self.call(method, path, body, "application/json")
        try:
            return from_json(reply, json.loads(answer))
        except ValueError:
            raise BadMessage(f"the service's answer to {path} is not JSON") from None

    async def call(self, method: str, path: str, body: bytes, content_type: str = "application/octet-stream") -> bytes:
        """One request, repeated while the line is down and patience lasts."""
        first_failure: float | None = None
        delay_seconds = 0.2
        while True:
            try:
                return await self._once(method, path, body, content_type)
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
        certificate = x509.load_pem_x509_certificate(self._certificate_path.read_bytes())
        begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if begin <= datetime.now(UTC) <= end:
            return
        raise TrustError(
            f"{self._url} ends the connection, and this agent's certificate is valid only from {begin:%Y-%m-%d %H:%M} "
            f"to {end:%Y-%m-%d %H:%M} UTC",
            "check this machine's clock; if it is right, enrol again: understudy-agent enroll URL TOKEN",
        )

    async def _once(self, method: str, path: str, body: bytes, content_type: str) -> bytes:
        assert self._http is not None, "use the client as a context manager"
        try:
            async with self._http.request(
                method,
                self._url + path,
                data=body,
                headers={"Content-Type": content_type},
                server_hostname=self._server_hostname,
            ) as reply:
                answer = await reply.read()
                status = reply.status
        except (aiohttp.ClientError, ssl.SSLError, OSError, TimeoutError) as error:
            raise _translated(self._url, error) from error
        if 200 <= status < 300:
            return answer
        raise _error_of(self._url, status, answer)


def _error_of(url: str, status: int, answer: bytes) -> UnderstudyError:
    try:
        return UnderstudyError.from_json(json.loads(answer))
    except ValueError:
        return TransportError(f"{url} answered HTTP {status}, and not as an Understudy service does", "check the URL")


def _translated(url: str, error: Exception) -> UnderstudyError:
    """Library errors as ours. OpenSSL tells its reasons only in words."""
    text = str(error)
    lower = text.lower().replace("_", " ")
    if isinstance(error, aiohttp.InvalidURL):
        return TransportError(f"{url} is not a URL", "it looks like https://HOST:8470")
    if "certificate expired" in lower or "certificate has expired" in lower:
        return TrustError(
            f"a certificate between this agent and {url} has expired",
            "check this machine's clock; if it is right, enrol again: understudy-agent enroll URL TOKEN",
        )
    if "not yet valid" in lower:
        return TrustError(f"the certificate of {url} is not valid yet", "check this machine's clock")
    if isinstance(error, aiohttp.ClientConnectorCertificateError) or "certificate verify failed" in lower:
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
    return TransportError(f"{url} could not be reached: {_reason(text) or type(error).__name__}")


def _reason(text: str) -> str:
    """The part of an aiohttp error text that says why."""
    text = re.sub(r"\[Errno -?\d+\] ", "", text)
    return text.rsplit("[", 1)[-1].rstrip("]") if "[" in text else text
