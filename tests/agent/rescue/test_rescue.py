"""The rescue program at a terminal, on a real service: only the machine's hardware is played.

The failback's run is written into the service's database: its own steps are what tests/recovery does, and
tests/rescue does all of it with real machines."""

from __future__ import annotations

import asyncio
import os
import pty
import random
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from agent.protocol.errors import UsageError
from agent.rescue.console import Console
from agent.rescue.contents import Disk
from agent.rescue.rescue import Rescue
from agent.rescue.way import Way
from agent.state import State
from recovery.runs import Run, RunKind, Step, StepState
from service.store.database import Database, sqlite_url
from service.store.runs import RunRows
from service.store.servers import ServerStore
from tests.faults.harness import Agent, Service, sum_of
from tests.faults.images import make_image

LIMIT_SECONDS = 60.0
SIZE_BYTES = 4 << 20


class PlayedMachine:
    """Files for disks; remembers what it was told."""

    def __init__(self, url: str | None, disks: list[Disk]) -> None:
        self.url = url
        self.its_disks = disks
        self.cards: list[tuple[str, list[str]]] = [("eth0", ["192.0.2.7/24"])]
        self.told: list[str] = []
        self.fault: Exception | None = None
        self.restarted = asyncio.Event()

    def description(self) -> str:
        return "Dell PowerEdge, 52:54:00:12:34:56"

    def addresses(self) -> list[tuple[str, list[str]]]:
        if self.fault is not None:
            raise self.fault
        return self.cards

    def given_url(self) -> str | None:
        return self.url

    def disks(self) -> list[Disk]:
        return self.its_disks

    def set_address(self, card: str, address: str, gateway: str) -> None:
        if address == "nonsense":
            raise UsageError("'nonsense' cannot be used", "an address is like 192.0.2.7/24")
        self.told.append(f"{card} {address} {gateway}")
        self.cards = [(card, [address])]

    def set_clock(self, now: float) -> bool:
        return False

    def shell(self) -> None:
        self.told.append("shell")

    def restart(self) -> None:
        self.told.append("restart")
        self.restarted.set()

    def switch_off(self) -> None:
        self.told.append("switch off")


class Person:
    """At the machine's terminal."""

    def __init__(self, terminal: int) -> None:
        self._terminal = terminal
        self._shown = ""
        self.all = ""

    async def sees(self, pattern: str) -> re.Match[str]:
        """The next place where the screen says so."""
        async with asyncio.timeout(LIMIT_SECONDS):
            while (found := re.search(pattern, self._shown)) is None:
                more = (await asyncio.to_thread(os.read, self._terminal, 65536)).decode().replace("\r", "")
                self._shown += more
                self.all += more
        self._shown = self._shown[found.end() :]
        return found

    def types(self, text: str) -> None:
        os.write(self._terminal, f"{text}\r".encode())


class Scene:
    def __init__(self, service: Service, machine: PlayedMachine, person: Person) -> None:
        self.service = service
        self.machine = machine
        self.person = person

    async def pair(self) -> None:
        code = (await self.person.sees(r"understudy pair (\S+) --server"))[1]
        done = await asyncio.to_thread(self.service.ask, "pair", code, "--server", "web01")
        assert done.code == 0, done.err
        assert "Dell PowerEdge" in done.out
        await self.person.sees("Paired: this machine is to become web01")


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    made = Service(tmp_path / "service")
    made.start()
    yield made
    assert made.stop() == 0
    assert "Traceback" not in made.log(), made.log()


@pytest.fixture
def source(service: Service, tmp_path: Path) -> tuple[Agent, Path]:
    """A protected server and its disk."""
    agent = Agent(tmp_path / "agent", service)
    agent.enroll("web01")
    image = make_image(tmp_path / "disk.raw", random.Random(1), SIZE_BYTES)
    agent.protect(image)
    agent.push().document  # noqa: B018  # asserts
    return agent, image


@pytest.fixture
async def scene(service: Service, source: tuple[Agent, Path], tmp_path: Path) -> AsyncIterator[Scene]:
    ours, theirs = pty.openpty()
    target = tmp_path / "target.raw"
    with target.open("wb") as file:
        file.truncate(SIZE_BYTES)
    disks = [
        Disk("/dev/sdx", 1 << 20, "Small stick", "", "nothing"),
        Disk(str(target), SIZE_BYTES, "Large disk", "S1", "swap"),
    ]
    machine = PlayedMachine(service.url, disks)
    console = Console([theirs])
    way = Way(console, machine, State(tmp_path / "state"), poll_seconds=0.1, restart_seconds=0.1, patience_seconds=1)
    person = Person(ours)
    running = asyncio.create_task(Rescue(console, machine, way).run())
    try:
        yield Scene(service, machine, person)
        if machine.told[-1:] != ["restart"]:
            person.types("")
            await person.sees("Number, and Enter:")
            person.types("8")
        async with asyncio.timeout(LIMIT_SECONDS):
            await running
        assert "Traceback" not in person.all
    finally:
        running.cancel()
        console.close()
        os.close(theirs)
        os.close(ours)


async def test_it_leads_home_from_the_code_to_the_restart(
    scene: Scene, source: tuple[Agent, Path], tmp_path: Path
) -> None:
    person, (agent, image), target = scene.person, source, tmp_path / "target.raw"
    await scene.pair()
    await person.sees(r"1  /dev/sdx  1.0 MiB  Small stick  holds: nothing  -- TOO SMALL")
    await person.sees(r"2  \S+  4.0 MiB  Large disk  S1  holds: swap")
    person.types("1")
    await person.sees("smaller than the server's disk")
    person.types("nonsense")
    await person.sees("Number of the disk")
    person.types("2")
    await person.sees(r"THIS IS LOST[^$]*all of \S+target.raw")
    await person.sees("type the server's name, web01")
    person.types("yes")
    await person.sees("the name was not typed, and nothing was written")
    assert target.read_bytes() == bytes(SIZE_BYTES)
    await person.sees("Number, and Enter:")
    person.types("1")
    await person.sees("Number of the disk")
    person.types("2")
    await person.sees("type the server's name, web01")
    person.types("web01")
    await person.sees(r"no failback of web01 is under way; at the service: understudy failback RUN")
    await person.sees("written, read back and right")
    assert sum_of(target) == sum_of(image)

    with image.open("r+b") as disk:
        disk.write(b"changed while it ran")
    first = str((await asyncio.to_thread(agent.push)).document["point"])
    run = _Failback(scene.service)
    run.reaches("await_pull", first)
    await person.sees(r"\[sync while running: ")
    await person.sees("written, read back and right")
    assert sum_of(target) == sum_of(image)
    run.reaches("shut_down", first)
    await person.sees(r"\[cut over: shut down")
    with image.open("r+b") as disk:
        disk.write(b"changed for the last time")
    run.reaches("await_home", str((await asyncio.to_thread(agent.push)).document["point"]))
    await person.sees("written, read back and right")
    await person.sees("web01 is handed home: this machine starts from its own disk now")
    async with asyncio.timeout(LIMIT_SECONDS):
        await scene.machine.restarted.wait()
    assert scene.machine.told == ["restart"]
    assert sum_of(target) == sum_of(image)


async def test_enter_leads_to_the_menu_and_on_goes_on(scene: Scene) -> None:
    person = scene.person
    await person.sees("understudy pair")
    person.types("")
    await person.sees("Stopped")
    await person.sees("Number, and Enter:")
    person.types("2")
    await person.sees("eth0  192.0.2.7/24")
    await person.sees("Address with prefix")
    person.types("nonsense")
    await person.sees("Gateway")
    person.types("")
    await person.sees("It did not work: 'nonsense' cannot be used")
    await person.sees("Number, and Enter:")
    person.types("2")
    await person.sees("Address with prefix")
    person.types("192.0.2.8/24")
    await person.sees("Gateway")
    person.types("192.0.2.1")
    await person.sees("eth0 has 192.0.2.8/24 now")
    person.types("6")
    await person.sees("Type exit")
    assert scene.machine.told == ["eth0 192.0.2.8/24 192.0.2.1", "shell"]
    person.types("1")
    await scene.pair()
    await person.sees("Number of the disk")
    person.types("m")


async def test_a_service_that_does_not_answer_is_told_with_the_way_out(scene: Scene) -> None:
    person = scene.person
    await person.sees("understudy pair")
    person.types("")
    await person.sees("Number, and Enter:")
    person.types("3")
    await person.sees("name or address:")
    person.types("what is this")
    await person.sees("no address of a service")
    await person.sees("Number, and Enter:")
    person.types("3")
    await person.sees("name or address:")
    person.types("127.0.0.1:9")
    await person.sees("no Understudy service answers at https://127.0.0.1:9")
    await person.sees("serve --listen")
    await person.sees("Number, and Enter:")
    person.types("3")
    await person.sees("name or address:")
    person.types(scene.service.url)
    await scene.pair()
    await person.sees("Number of the disk")
    person.types("m")


async def test_a_fault_of_ours_is_told_without_a_traceback_and_gone_on_from(scene: Scene) -> None:
    person = scene.person
    await person.sees("understudy pair")
    person.types("")
    await person.sees("Number, and Enter:")
    scene.machine.fault = ZeroDivisionError("division by zero")
    person.types("1")
    await person.sees("It did not work: something that should not happen: ZeroDivisionError: division by zero")
    await person.sees("Number, and Enter:")
    scene.machine.fault = None
    person.types("1")
    await person.sees("understudy pair")


async def test_a_service_that_is_away_for_a_while_is_waited_for(scene: Scene) -> None:
    person = scene.person
    await scene.pair()
    await person.sees("Number of the disk")
    person.types("2")
    await person.sees("type the server's name, web01")
    person.types("web01")
    await person.sees("written, read back and right")
    await asyncio.to_thread(scene.service.kill)
    await person.sees("It is tried again until it works")
    await asyncio.to_thread(scene.service.start)
    run = _Failback(scene.service)
    run.reaches("shut_down", "pt-1")
    await person.sees(r"\[cut over: shut down")


class _Failback:
    """A run as if it was under way, in the database of a service that does not perform it."""

    def __init__(self, service: Service) -> None:
        database = Database.open(sqlite_url(service.data / "understudy.sqlite"))
        server = ServerStore(database).by_name("default", "web01")
        stages = {
            "take_point": "prepare",
            "await_pull": "sync while running",
            "shut_down": "cut over",
            "capture": "cut over",
            "await_home": "boot at home",
        }
        self.run = Run(
            id="failback-1",
            tenant="default",
            kind=RunKind.FAILBACK,
            plan="web01",
            steps=[
                Step(
                    name=f"{action.replace('_', ' ')} of web01",
                    action=action,
                    args={"server_id": server.id, "server": "web01", "stage": stage, "instance_id": "i-1"},
                )
                for action, stage in stages.items()
            ],
        )
        self._rows = RunRows(database)
        self._rows.add(self.run)
        database.close()
        self._service = service

    def reaches(self, action: str, point: str) -> None:
        """All steps before that are done; what took a point took this one."""
        database = Database.open(sqlite_url(self._service.data / "understudy.sqlite"))
        rows = RunRows(database)
        for position, step in enumerate(self.run.steps):
            if step.action == action:
                step.state = StepState.RUNNING
                rows.save_step(self.run.id, position, step)
                break
            step.state = StepState.DONE
            if step.action in ("take_point", "capture"):
                step.result = {"point": point}
            rows.save_step(self.run.id, position, step)
        database.close()
