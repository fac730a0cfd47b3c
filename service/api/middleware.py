"""What every request passes: errors become JSON, agents show a certificate, operators a token."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.typedefs import Middleware

from agent.protocol.errors import (
    BadMessage,
    InternalError,
    NotFound,
    TokenError,
    UnderstudyError,
    UsageError,
    VersionMismatch,
)
from agent.protocol.messages import PROTOCOL_VERSION, VERSION_HEADER
from agent.protocol.tokens import AdminToken
from service.identity.gatekeeper import AGENT, Gatekeeper

AGENT_PREFIX = "/agent/v1/"
ENROLL_PATH = AGENT_PREFIX + "enroll"
PAIRING_PREFIX = AGENT_PREFIX + "pairings"
OPERATOR_PREFIX = "/api/v1/"
_TOKEN_HINT = "the operator's token lies in the service's data folder: admin-token"  # noqa: S105  # where it lies

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = logging.getLogger(__name__)


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The one place where errors become answers; what nobody foresaw is logged in full and told in brief."""
    try:
        return await handler(request)
    except UnderstudyError as error:
        if error.http_status >= 500:
            log.warning("%s %s: %s", request.method, request.path, error)
        return web.json_response(error.to_json(), status=error.http_status)
    except web.HTTPException as error:
        allowed = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
        return web.json_response(_of_http(request, error).to_json(), status=error.status, headers=allowed)
    except (asyncio.CancelledError, ConnectionError):
        raise
    except Exception:
        log.exception("%s %s failed in an unexpected way", request.method, request.path)
        unforeseen = InternalError(f"{request.method} {request.path} failed in an unexpected way")
        return web.json_response(unforeseen.to_json(), status=unforeseen.http_status)


def agents_by_certificate(gatekeeper: Gatekeeper) -> Middleware:
    """Everything under /agent/v1 but enrolment and pairing is for agents whose certificate we know, in a version we
    speak."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path.startswith(AGENT_PREFIX):
            version = request.headers.get(VERSION_HEADER)
            if version != str(PROTOCOL_VERSION):
                said = f"protocol {version}" if version else "no protocol version"
                raise VersionMismatch(f"this service speaks protocol {PROTOCOL_VERSION}, the request says {said}")
            if request.path != ENROLL_PATH and not request.path.startswith(PAIRING_PREFIX):
                serial = gatekeeper.serial_of(request)
                known = gatekeeper.recognize(serial)
                request[AGENT] = known or await asyncio.to_thread(gatekeeper.identify, serial)
        return await handler(request)

    return check


def operators_by_token(secret_sha256: bytes) -> Middleware:
    """Everything under /api/v1 needs `Authorization: Bearer usa1_...`; compared by hash, in constant time."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path.startswith(OPERATOR_PREFIX):
            scheme, _, text = request.headers.get("Authorization", "").partition(" ")
            if scheme.lower() != "bearer":
                raise TokenError("this needs an operator's token", _TOKEN_HINT)
            secret = AdminToken.parse(text).secret
            if not hmac.compare_digest(hashlib.sha256(secret.encode()).digest(), secret_sha256):
                raise TokenError("the service does not know this operator's token", _TOKEN_HINT)
        return await handler(request)

    return check


def _of_http(request: web.Request, error: web.HTTPException) -> UnderstudyError:
    if error.status == 404:
        return NotFound(f"there is no {request.path} here", "check the URL, and the versions of both sides")
    if error.status == 405:
        return UsageError(f"{request.path} does not take {request.method}", "check the versions of both sides")
    if error.status == 413:
        return BadMessage("the body is too large")
    return UsageError(f"{request.method} {request.path}: {error.reason}")
