"""The machine's side of a pairing, over the line: shows codes until an operator types one, and has a token then."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable

from agent.client import ServiceClient, unverified_context
from agent.protocol.errors import BadMessage, Conflict, NotFound, PairingError
from agent.protocol.messages import (
    PairingGrant,
    PairingLook,
    PairingOpened,
    PairingProof,
    PairingSealed,
    PairingStanding,
    from_json,
)
from agent.protocol.pairing import Answer, Code, MachineSide

PATH = "/agent/v1/pairings"
WAIT_SECONDS = 20
SHORTEST_SECONDS, LONGEST_SECONDS = 30.0, 600.0
MOST_REFUSED = 3
"""Codes in a row that were answered by somebody who did not know them: then no more are shown unasked. Each is one
guess for whoever is in between."""


async def pair(
    url: str,
    machine: str,
    show: Callable[[Code, float], None],
    refused: Callable[[PairingError], None] = lambda error: None,
) -> PairingGrant:
    """Show a code (it is good for so many seconds), and another when it is worthless, until one was typed at the
    service. `machine` describes this machine for the operator.

    The line's other end is not known yet, so TLS protects nothing here: the exchange does. Raises PairingError (too
    many codes were answered wrongly: `refused` is told of those before), TransportError, UsageError."""
    failed = 0
    async with ServiceClient(url, unverified_context(), patience_seconds=20) as client:
        while True:
            try:
                grant = await _one_code(client, machine, show)
            except PairingError as error:
                failed += 1
                if failed >= MOST_REFUSED:
                    raise
                refused(error)
                continue
            if grant is not None:
                return grant


async def _one_code(client: ServiceClient, machine: str, show: Callable[[Code, float], None]) -> PairingGrant | None:
    """None: nobody typed it while it was good."""
    code, side, opened = await _open(client, machine)
    good_seconds = min(max(opened.seconds, SHORTEST_SECONDS), LONGEST_SECONDS)
    deadline = time.monotonic() + good_seconds
    show(code, good_seconds)
    try:
        while time.monotonic() < deadline:
            asked = PairingLook(wait_seconds=WAIT_SECONDS)
            standing = await client.ask(f"{PATH}/{opened.pairing}", asked, PairingStanding)
            if standing.element is not None and standing.proof is not None:
                return await _finish(client, opened, side, Answer(element=standing.element, proof=standing.proof))
    except NotFound:
        pass  # its time was up, or the service was started anew
    return None


async def _open(client: ServiceClient, machine: str) -> tuple[Code, MachineSide, PairingOpened]:
    while True:
        code = Code.new()
        side = MachineSide(code, machine)
        try:
            return code, side, await client.ask(PATH, side.opening, PairingOpened)
        except Conflict:
            await asyncio.sleep(0.1)  # another machine shows one with the same beginning


async def _finish(client: ServiceClient, opened: PairingOpened, side: MachineSide, answer: Answer) -> PairingGrant:
    path = f"{PATH}/{opened.pairing}"
    try:
        proof = side.proof(answer)
    except (PairingError, BadMessage) as error:
        await client.ask(path, PairingLook(refuse=True), PairingStanding)
        raise PairingError(error.message, error.hint) from None
    sealed = await client.ask(f"{path}/proof", PairingProof(proof=proof), PairingSealed)
    try:
        return from_json(PairingGrant, json.loads(side.open(sealed.sealed)))
    except ValueError:
        raise BadMessage("what the service sealed for this machine cannot be read") from None
