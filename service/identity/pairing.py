"""The pairings under way: machines that show a code, and wait until an operator types it here.

They are kept in memory: what a restart loses is a code on a screen, and the machine shows the next one.
Each code has one attempt, which an operator makes by typing it; nobody else can make one.
"""

from __future__ import annotations

import enum
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from agent.protocol.errors import BadMessage, Conflict, NotFound, PairingError
from agent.protocol.pairing import NAMEPLATE_LENGTH, Answer, Code, Opening, ServiceSide, printable

LIFE_SECONDS = 600.0
MOST, MOST_OF_ONE_ADDRESS = 64, 4
_GONE = "this pairing is over: its time was up, or the service was started anew"


class PairingState(enum.StrEnum):
    SHOWN = "shown"
    TYPED = "typed"
    """An operator typed the code; the machine has not proven yet that it shows it."""
    PAIRED = "paired"
    REFUSED = "refused"


@dataclass(slots=True)
class Pairing:
    """`machine` is what the machine says of itself: to be believed once it is paired."""

    id: str
    opening: Opening
    address: str
    expires_at: float
    state: PairingState = PairingState.SHOWN
    side: ServiceSide | None = None
    sealed: str | None = None
    grant: Callable[[], bytes] = field(default=bytes)

    @property
    def waits(self) -> bool:
        return self.state in (PairingState.SHOWN, PairingState.TYPED)

    @property
    def machine(self) -> str:
        return self.opening.machine

    @property
    def answer(self) -> Answer | None:
        return None if self.side is None else self.side.answer


class Pairings:
    """For many threads. `now` is a monotonic clock."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._pairings: dict[str, Pairing] = {}

    def open(self, opening: Opening, address: str) -> Pairing:
        """A machine shows a code. The same opening again: the same pairing. Raises BadMessage, Conflict."""
        if len(opening.nameplate) != NAMEPLATE_LENGTH or opening.machine != printable(opening.machine):
            raise BadMessage("a pairing begins with a nameplate and a line about the machine")
        with self._lock:
            self._forget_old()
            for known in self._pairings.values():
                if known.opening == opening:
                    return known
                if known.opening.nameplate == opening.nameplate:
                    raise Conflict("another machine shows a code like this one", "show another code")
            waiting = [pairing for pairing in self._pairings.values() if pairing.waits]
            mine = [pairing for pairing in waiting if pairing.address == address]
            if len(waiting) >= MOST or len(mine) >= MOST_OF_ONE_ADDRESS:
                raise PairingError(
                    f"{len(waiting)} machines wait to be paired already, {len(mine)} of them at {address}",
                    f"wait until their codes have expired, {LIFE_SECONDS / 60:.0f} minutes at most",
                )
            if len(self._pairings) >= 2 * MOST:
                del self._pairings[next(pairing.id for pairing in self._pairings.values() if not pairing.waits)]
            made = Pairing(secrets.token_hex(16), opening, address, self._now() + LIFE_SECONDS)
            self._pairings[made.id] = made
            return made

    def get(self, pairing_id: str) -> Pairing:
        """Raises NotFound, also when its time is up."""
        with self._lock:
            return self._get(pairing_id)

    def type(self, code: Code, grant: Callable[[], bytes]) -> Pairing:
        """An operator typed a code: its one attempt. `grant` makes what the machine gets once it has proven itself.

        Raises NotFound (no machine shows it), PairingError (used), BadMessage."""
        with self._lock:
            self._forget_old()
            plates = {pairing.opening.nameplate: pairing for pairing in self._pairings.values()}
            pairing = plates.get(code.nameplate)
            if pairing is None:
                raise NotFound(
                    f"no machine shows the code {code.shown} now",
                    "look at its screen again: codes change, and the address there must be this service's",
                )
            if pairing.state is not PairingState.SHOWN:
                raise PairingError("this code has been used")
            pairing.state = PairingState.REFUSED  # unless all of the following goes well
            pairing.side = ServiceSide(code, pairing.opening)
            pairing.grant = grant
            pairing.state = PairingState.TYPED
            return pairing

    def prove(self, pairing_id: str, proof: str) -> str:
        """The machine's proof; returns what is sealed for it. Repeating it gives the same.

        Raises NotFound, PairingError, and what `grant` raises."""
        with self._lock:
            pairing = self._get(pairing_id)
            if pairing.side is None or pairing.state not in (PairingState.TYPED, PairingState.PAIRED):
                raise PairingError("nobody typed this code, or it has been used")
            if pairing.state is PairingState.TYPED:
                pairing.state = PairingState.REFUSED  # one proof, right or wrong
            pairing.side.check(proof)
            if pairing.sealed is None:
                pairing.sealed = pairing.side.seal(pairing.grant())
            pairing.state = PairingState.PAIRED
            return pairing.sealed

    def refuse(self, pairing_id: str) -> None:
        """The machine does not believe the answer, or shows another code by now: this one is worthless."""
        with self._lock:
            pairing = self._get(pairing_id)
            if pairing.state is not PairingState.PAIRED:
                pairing.state = PairingState.REFUSED
                pairing.side = None

    def _get(self, pairing_id: str) -> Pairing:
        self._forget_old()
        pairing = self._pairings.get(pairing_id)
        if pairing is None:
            raise NotFound(_GONE, "show another code")
        return pairing

    def _forget_old(self) -> None:
        now = self._now()
        for pairing in [pairing for pairing in self._pairings.values() if pairing.expires_at <= now]:
            del self._pairings[pairing.id]
