"""The screen and the serial line at once: what is said goes to all, a line may be typed at any of them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Iterable

PROGRESS_SECONDS = 2.0
_LONGEST_LINE = 1000


class Terminal:
    """One of them, by its descriptor. One that breaks (a serial port that is none) is left alone from then on."""

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self.descriptor = descriptor
        self.broken = False
        self._typed = b""

    def write(self, text: str) -> None:
        """As much as it takes: a terminal that nobody reads must not hold everything up."""
        if self.broken:
            return
        try:
            os.write(self.descriptor, text.replace("\n", "\r\n").encode(errors="replace"))
        except BlockingIOError:
            pass
        except OSError:
            self.broken = True

    def lines(self) -> list[str]:
        """What was typed since, as far as lines are complete."""
        try:
            found = os.read(self.descriptor, 4096)
        except BlockingIOError:
            return []
        except OSError:
            found = b""
        if not found:
            self.broken = True
            return []
        *complete, self._typed = (self._typed + found).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._typed = self._typed[-_LONGEST_LINE:]
        return [line.decode(errors="replace").strip() for line in complete]


class Console:
    """Use inside a running event loop; `close` it at the end. The descriptors stay open."""

    def __init__(self, descriptors: Iterable[int]) -> None:
        self._terminals = [Terminal(descriptor) for descriptor in descriptors]
        self._lines: asyncio.Queue[str] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._shown_at = 0.0
        self._shown = ""
        for terminal in self._terminals:
            self._loop.add_reader(terminal.descriptor, self._read, terminal)

    def close(self) -> None:
        for terminal in self._terminals:
            self._loop.remove_reader(terminal.descriptor)

    def say(self, text: str = "") -> None:
        self._end_progress()
        self._write(text + "\n")

    async def ask(self, question: str) -> str:
        """What is typed in answer, without blanks around it. What was typed before counts for nothing."""
        while not self._lines.empty():
            self._lines.get_nowait()
        self._end_progress()
        self._write(f"{question} ")
        return await self._lines.get()

    async def key(self) -> None:
        """Until somebody presses Enter."""
        while not self._lines.empty():
            self._lines.get_nowait()
        await self._lines.get()

    def progress(self, what: str, done: int, total: int) -> None:
        """A line that is written over as it changes, now and then."""
        now = time.monotonic()
        if now - self._shown_at < PROGRESS_SECONDS and done < total:
            return
        self._shown_at = now
        text = f"  {what}: {done / total if total else 1:4.0%} of {size_text(total)}"
        if text != self._shown:
            self._shown = text
            self._write(f"\r{text}")

    def _end_progress(self) -> None:
        if self._shown:
            self._shown = ""
            self._write("\n")

    def _read(self, terminal: Terminal) -> None:
        for line in terminal.lines():
            self._lines.put_nowait(line)
        if terminal.broken:
            with contextlib.suppress(OSError, ValueError):
                self._loop.remove_reader(terminal.descriptor)

    def _write(self, text: str) -> None:
        for terminal in self._terminals:
            terminal.write(text)


def size_text(size_bytes: int) -> str:
    """As disks are sold and shown: 1.5 GiB."""
    for unit, scale in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20)):
        if size_bytes >= scale:
            return f"{size_bytes / scale:.1f} {unit}"
    return f"{size_bytes} bytes"
