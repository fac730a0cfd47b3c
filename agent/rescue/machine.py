"""The machine that is rescued, as the rescue program needs it; `RescueMachine` is the real one."""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
import subprocess
import time
from pathlib import Path
from typing import Protocol

from agent.inventory import disks, machine_id, network
from agent.protocol.errors import UsageError
from agent.rescue.address import url_in, url_of
from agent.rescue.contents import Disk, disks_of, read_head

FROM_DHCP = Path("/run/understudy/dhcp-url")
"""What the DHCP server said in option 224, where the rescue image's script puts it."""
WRONG_CLOCK_SECONDS = 60.0
_CDROMEJECT = 0x5309


class Machine(Protocol):
    def description(self) -> str:
        """A line by which an operator knows it."""
        ...

    def addresses(self) -> list[tuple[str, list[str]]]:
        """Each network card and its addresses."""
        ...

    def given_url(self) -> str | None:
        """The service's, where somebody gave it before. Raises UsageError."""
        ...

    def disks(self) -> list[Disk]: ...

    def set_address(self, card: str, address: str, gateway: str) -> None:
        """`address` with prefix length. Raises UsageError."""
        ...

    def set_clock(self, now: float) -> bool:
        """True: it was wrong, and is right now."""
        ...

    def shell(self) -> None: ...

    def restart(self) -> None:
        """From its own disk, as far as that is up to us."""
        ...

    def switch_off(self) -> None: ...


class RescueMachine:
    def description(self) -> str:
        folder = Path("/sys/class/dmi/id")
        words = [_text(folder / name) for name in ("sys_vendor", "product_name", "product_serial")]
        macs = [card["mac"] for card in network() if card["mac"]]
        about = [" ".join(filter(None, words)) or "unknown hardware", *macs[:2], f"UUID {machine_id()}"]
        return ", ".join(about)

    def addresses(self) -> list[tuple[str, list[str]]]:
        return [(card["name"], card["addresses"]) for card in network() if card["mac"]]

    def given_url(self) -> str | None:
        found = url_in(_text(Path("/proc/cmdline")))
        if found is None and FROM_DHCP.exists():
            found = url_of(_text(FROM_DHCP))
        return found

    def disks(self) -> list[Disk]:
        return disks_of(disks(), read_head)

    def set_address(self, card: str, address: str, gateway: str) -> None:
        try:
            interface = ipaddress.ip_interface(address)
            if "/" not in address:
                raise ValueError  # noqa: TRY301  # one way out for all that cannot be read
            if gateway:
                ipaddress.ip_address(gateway)
        except ValueError:
            raise UsageError(
                f"{address!r} with gateway {gateway!r} cannot be used", "an address is like 192.0.2.7/24"
            ) from None
        _ip("addr", "replace", str(interface), "dev", card)
        _ip("link", "set", card, "up")
        if gateway:
            _ip("route", "replace", "default", "via", gateway, "dev", card)

    def set_clock(self, now: float) -> bool:
        if abs(now - time.time()) < WRONG_CLOCK_SECONDS:
            return False
        with contextlib.suppress(OSError):
            time.clock_settime(time.CLOCK_REALTIME, now)
        return True

    def shell(self) -> None:
        subprocess.run(["/bin/sh"], check=False)

    def restart(self) -> None:
        os.sync()
        _eject()
        subprocess.run(["reboot", "-f"], check=False)

    def switch_off(self) -> None:
        os.sync()
        subprocess.run(["poweroff", "-f"], check=False)


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UsageError(f"the network card does not take {' '.join(words)}: {reason}", "check the card's name")


def _eject() -> None:
    """The rescue medium, so that the machine does not start from it again; everything runs from memory."""
    for drive in Path("/dev").glob("sr*"):
        with contextlib.suppress(OSError):
            descriptor = os.open(drive, os.O_RDONLY | os.O_NONBLOCK)
            try:
                fcntl.ioctl(descriptor, _CDROMEJECT)
            finally:
                os.close(descriptor)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
