"""Pairing between a real service, an operator's command, and a machine that shows its code."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.client import ServiceClient, unverified_context
from agent.identity import enroll
from agent.pairing import PATH, pair
from agent.protocol.errors import NotFound, PairingError, TrustError
from agent.protocol.messages import PairingGrant, PairingLook, PairingOpened, PairingProof, PairingStanding
from agent.protocol.pairing import Code, MachineSide, ServiceSide
from agent.state import State
from tests.faults.harness import Agent, Service
from tests.faults.images import make_image


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("pairing")
    made = Service(folder / "service")
    made.start()
    agent = Agent(folder / "agent", made)
    agent.enroll("web01")
    agent.protect(make_image(folder / "disk.raw", random.Random(1), 1 << 20))
    agent.push().document  # noqa: B018  # asserts
    yield made
    assert made.stop() == 0
    assert "Traceback" not in made.log(), made.log()


async def typed(service: Service, code: Code, server: str = "web01") -> Any:
    return await asyncio.to_thread(service.ask, "pair", code.shown.lower(), "--server", server, "--json")


async def paired(service: Service, respond: Callable[[Code], Any]) -> PairingGrant:
    """Show codes, and do `respond` about each that is shown."""
    deeds: list[asyncio.Task[Any]] = []
    async with asyncio.TaskGroup() as group:

        def show(code: Code, seconds: float) -> None:
            assert 0 < seconds <= 600
            deeds.append(group.create_task(respond(code)))

        return await pair(service.url, "a machine with 2 disks", show)


async def test_a_typed_code_makes_the_machine_the_servers_repair_target(service: Service, tmp_path: Path) -> None:
    told: list[Any] = []

    async def respond(code: Code) -> None:
        told.append((await typed(service, code)).document)

    grant = await paired(service, respond)
    assert told == [{"server": "web01", "machine": "a machine with 2 disks"}]
    assert grant.server == "web01"
    assert abs(grant.now - time.time()) < 60
    state = State(tmp_path / "state")
    identity = await enroll(state, service.url, grant.token)
    assert identity.server_name == "web01"
    async with ServiceClient.of(state) as client:
        assert await client.call("GET", "/agent/v1/points/latest", [])


async def test_after_a_mistyped_code_another_is_shown_and_works(service: Service) -> None:
    complaints: list[str] = []

    async def respond(code: Code) -> None:
        if complaints:
            assert (await typed(service, code)).code == 0
        else:
            wrong = Code(code.text[:-1] + ("A" if code.text[-1] != "A" else "C"))
            complaints.append("")
            complaints[0] = (await typed(service, wrong)).complaint

    assert (await paired(service, respond)).server == "web01"
    assert "this is not what the machine shows: it was mistyped, or somebody is in between" in complaints[0]


async def test_a_code_for_a_server_that_is_not_there_is_not_used_up(service: Service) -> None:
    async def respond(code: Code) -> None:
        assert "web99" in (await typed(service, code, "web99")).complaint
        assert (await typed(service, code)).code == 0

    assert (await paired(service, respond)).server == "web01"


async def test_a_code_that_nobody_shows_and_one_that_is_none_are_said_so(service: Service) -> None:
    assert "no machine shows the code" in (await typed(service, Code.new())).complaint
    refused = await asyncio.to_thread(service.ask, "pair", "WHAT?", "--server", "web01")
    assert "no pairing code" in refused.complaint


async def test_somebody_in_between_gets_one_guess_and_is_noticed_at_both_ends(service: Service) -> None:
    """Mallory has the line: he opens in the machine's place, and answers in the service's. The operator types what the
    machine shows."""
    code = Code("K7MX4QRT")
    machine = MachineSide(code, "a machine")
    guess = Code("K7MX4QRA")
    async with ServiceClient(service.url, unverified_context()) as line:
        mallory = MachineSide(guess, "a machine")
        opened = await line.ask(PATH, mallory.opening, PairingOpened)
        operator = asyncio.create_task(typed(service, code))
        while True:
            asked = PairingLook(wait_seconds=5)
            standing = await line.ask(f"{PATH}/{opened.pairing}", asked, PairingStanding)
            if standing.element is not None:
                break
        fake = ServiceSide(guess, machine.opening)
        with pytest.raises(PairingError):
            machine.proof(fake.answer)
        with pytest.raises(PairingError):
            await line.call(
                "POST", f"{PATH}/{opened.pairing}/proof", [b'{"proof": "' + b"00" * 32 + b'"}'], "application/json"
            )
        assert "somebody is in between" in (await operator).complaint
        with pytest.raises(PairingError):
            await line.ask(f"{PATH}/{opened.pairing}/proof", PairingProof(proof="11" * 32), PairingStanding)
    assert "has been used" in (await typed(service, code)).complaint


async def test_a_service_that_never_knows_the_code_gets_three_guesses_and_no_more(
    service: Service,
) -> None:
    shown: list[Code] = []

    async def respond(code: Code) -> None:
        shown.append(code)
        wrong = Code(code.text[:-1] + ("A" if code.text[-1] != "A" else "C"))
        assert (await typed(service, wrong)).code == 1

    with pytest.raises(ExceptionGroup) as failed:
        await paired(service, respond)
    assert failed.group_contains(PairingError, match="does not know this machine's code")
    assert len(shown) == 3


async def test_a_token_that_came_by_pairing_is_good_once_and_for_this_service_only(
    service: Service, tmp_path: Path
) -> None:
    async def respond(code: Code) -> None:
        assert (await typed(service, code)).code == 0

    grant = await paired(service, respond)
    other = Service(tmp_path / "other")
    other.start()
    try:
        with pytest.raises(TrustError, match="another fingerprint"):
            await enroll(State(tmp_path / "state"), other.url, grant.token)
    finally:
        assert other.stop() == 0


async def test_after_a_restart_of_the_service_another_code_is_shown(tmp_path: Path) -> None:
    service = Service(tmp_path / "service")
    service.start()
    shown: list[Code] = []
    first, again = asyncio.Event(), asyncio.Event()

    def show(code: Code, seconds: float) -> None:
        shown.append(code)
        (again if first.is_set() else first).set()

    machine = asyncio.create_task(pair(service.url, "a machine", show))
    try:
        async with asyncio.timeout(60):
            await first.wait()
        await asyncio.to_thread(service.kill)
        await asyncio.to_thread(service.start)
        async with asyncio.timeout(60):
            await again.wait()
        assert shown[0] != shown[1]
    finally:
        machine.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await machine
        assert service.stop() == 0


async def test_an_id_that_is_none_is_told_so(service: Service) -> None:
    async with ServiceClient(service.url, unverified_context()) as line:
        with pytest.raises(NotFound):
            await line.ask(f"{PATH}/nonsense", PairingLook(), PairingStanding)
