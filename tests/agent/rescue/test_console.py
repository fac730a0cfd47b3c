"""What is said goes to every terminal, and a line may come from any of them; one that breaks disturbs nobody."""

from __future__ import annotations

import asyncio
import os
import pty
from collections.abc import Iterator

import pytest

from agent.rescue.console import Console, size_text


class Ends:
    """Pseudo-terminals: ours, and what the program has."""

    def __init__(self, count: int) -> None:
        pairs = [pty.openpty() for _ in range(count)]
        self.ours = [pair[0] for pair in pairs]
        self.theirs = [pair[1] for pair in pairs]

    def until(self, number: int, text: str) -> str:
        """What it shows, up to and with a text."""
        shown = ""
        while text not in shown:
            shown += os.read(self.ours[number], 65536).decode()
        return shown

    def type(self, number: int, text: str) -> None:
        os.write(self.ours[number], text.encode())


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends(2)
    yield made
    for descriptor in {*made.ours, *made.theirs}:
        os.close(descriptor)


async def test_all_terminals_show_and_each_may_answer(ends: Ends) -> None:
    console = Console(ends.theirs)
    try:
        for number in (0, 1):
            answer = asyncio.create_task(console.ask("Which?"))
            await asyncio.sleep(0)
            for other in (0, 1):
                assert ends.until(other, "Which? ")
            ends.type(number, "  this one \r")
            assert await answer == "this one"
    finally:
        console.close()


async def test_what_was_typed_before_a_question_does_not_answer_it(ends: Ends) -> None:
    console = Console(ends.theirs)
    try:
        pressed = asyncio.create_task(console.key())
        await asyncio.sleep(0)
        ends.type(0, "\r")
        await pressed
        ends.type(0, "too early\r")
        assert await asyncio.wait_for(console._lines.get(), 10) == "too early"
        console._lines.put_nowait("too early")
        answer = asyncio.create_task(console.ask("Name?"))
        await asyncio.sleep(0)
        ends.type(1, "web01\r")
        assert await answer == "web01"
    finally:
        console.close()


async def test_a_terminal_that_is_none_is_left_alone(ends: Ends) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    console = Console([*ends.theirs, write_end])
    try:
        console.say("hello")
        console.say("again")
        assert ends.until(0, "again")
        answer = asyncio.create_task(console.ask("?"))
        await asyncio.sleep(0)
        ends.type(0, "yes\r")
        assert await answer == "yes"
    finally:
        console.close()
        os.close(write_end)


async def test_a_terminal_that_nobody_reads_holds_nothing_up(ends: Ends) -> None:
    console = Console(ends.theirs[:1])
    try:
        for _ in range(200):
            console.say("x" * 1000)
    finally:
        console.close()


async def test_progress_is_one_line_that_is_written_over(ends: Ends) -> None:
    console = Console(ends.theirs)
    try:
        for done in range(101):
            console.progress("/dev/vda", done << 20, 100 << 20)
        console.say("done")
        shown = ends.until(0, "done")
        assert shown.partition("done")[0].count("\n") == 1
        assert "100% of 100.0 MiB" in shown
    finally:
        console.close()


def test_sizes_are_told_as_disks_are_sold() -> None:
    assert [size_text(n) for n in (0, 1 << 20, 3 << 29, 5 << 40)] == ["0 bytes", "1.0 MiB", "1.5 GiB", "5.0 TiB"]
