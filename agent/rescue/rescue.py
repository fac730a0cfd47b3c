"""The rescue program: the way home, and a menu where it ends otherwise. Every failure is told in words."""

from __future__ import annotations

import logging

from agent.protocol.errors import InternalError, UnderstudyError, UsageError
from agent.rescue.address import url_of
from agent.rescue.console import Console
from agent.rescue.machine import Machine
from agent.rescue.way import Interrupted, Way, tell

_MENU = """
  1  go on
  2  the network: show it, or set an address by hand
  3  another address of the service
  4  pair this machine again (with another server, or anew)
  5  choose the disks again
  6  a shell, for those who know their way
  7  restart this machine
  8  switch it off
"""

log = logging.getLogger("understudy-rescue")


class Rescue:
    def __init__(self, console: Console, machine: Machine, way: Way) -> None:
        self._console = console
        self._machine = machine
        self._way = way

    async def run(self) -> None:
        """Returns when the machine is to restart or to be switched off, which it has been told by then."""
        self._console.say("\nUnderstudy rescue\n\nThis machine can become one of your servers again. Nothing on its")
        self._console.say("disks is changed before you have typed that server's name.\n")
        while True:
            try:
                await self._way.go()
            except Interrupted:
                self._console.say("\nStopped. What was copied is not lost.")
            except UnderstudyError as error:
                tell(self._console, error)
            except Exception as error:  # nobody can do anything with a traceback at a console
                log.exception("this should not happen")
                what = f"something that should not happen: {type(error).__name__}: {error}"
                tell(self._console, InternalError(what, "go on (1); if it comes again, restart this machine (7)"))
            else:
                self._machine.restart()
                return
            if await self._menu():
                return

    async def _menu(self) -> bool:
        """True: this is the end."""
        while True:
            self._console.say(_MENU)
            typed = await self._console.ask("Number, and Enter:")
            try:
                match typed:
                    case "1":
                        return False
                    case "2":
                        await self._network_menu()
                    case "3":
                        self._way.use_service(url_of(await self._console.ask("The service's name or address:")))
                        return False
                    case "4":
                        self._way.forget_pairing()
                        return False
                    case "5":
                        self._way.forget_disks()
                        return False
                    case "6":
                        self._console.say("Type exit to come back.")
                        self._machine.shell()
                    case "7":
                        self._machine.restart()
                        return True
                    case "8":
                        self._machine.switch_off()
                        return True
            except UnderstudyError as error:
                tell(self._console, error)

    async def _network_menu(self) -> None:
        cards = self._machine.addresses()
        for card, addresses in cards:
            self._console.say(f"  {card}  {', '.join(addresses) or 'no address'}")
        if not cards:
            raise UsageError("this machine shows no network card", "it may need firmware that is not on this medium")
        address = await self._console.ask("Address with prefix, like 192.0.2.7/24 (Enter: leave it):")
        if not address:
            return
        card = cards[0][0] if len(cards) == 1 else await self._console.ask("Of which card?")
        if card not in dict(cards):
            raise UsageError(f"there is no network card {card!r}", f"it is one of {', '.join(dict(cards))}")
        gateway = await self._console.ask("Gateway (Enter: none):")
        self._machine.set_address(card, address, gateway)
        self._console.say(f"{card} has {address} now.")
