"""Fencing: this machine is not, or soon not, the server any more, so it stops serving.

What that means is the machine's own matter: the command allowed under the name `fence` (understudy-agent allow fence --
systemctl stop nginx), and `unfence` for the way back. The service can only ask for these two names.

fenced.json in the state folder says that the command has run, in which boot and at which epoch: a machine that boots
again starts its services again, and is fenced again.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

from agent.allowed import allowed, run_allowed
from agent.files import write_whole
from agent.protocol.errors import UnderstudyError
from agent.state import State

FENCE, UNFENCE = "fence", "unfence"
FILE = "fenced.json"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

log = logging.getLogger("understudy-agent")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    """`said`: what the command wrote, or why there was none."""

    epoch: int
    boot_id: str
    said: str


class Fencing:
    """One agent's. All calls block for as long as the commands take."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._path = state.folder / FILE
        self._failure: str | None = None

    def now(self) -> Fence | None:
        """The fence that was put up in this boot."""
        try:
            fence = Fence(**json.loads(self._path.read_bytes()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError):
            return None  # damaged: as if it was not there, so the command runs again, which must be harmless
        return fence if fence.boot_id == _boot_id() else None

    @property
    def said(self) -> str | None:
        """What to tell the service: what was stopped, or why nothing could be; None without a fence."""
        fence = self.now()
        return self._failure if fence is None else fence.said

    def put_up(self, epoch: int) -> str:
        """Because the service asks, while this machine still is the server. Returns what the command wrote.

        Raises Conflict (no such command is allowed here), RecoveryError (it failed)."""
        output = run_allowed(self._state, FENCE)
        return self._keep(epoch, output or "stopped")

    def stand_down(self, epoch: int) -> None:
        """Because another machine is the server now. Done already: does nothing; what failed is tried again."""
        if self.now() is not None:
            return
        try:
            if FENCE in allowed(self._state):
                self.put_up(epoch)
                log.warning("fenced: what this server did for others was stopped")
            else:
                self._keep(epoch, "nothing: no command `fence` is allowed on this machine")
        except UnderstudyError as error:
            self._failure = f"nothing: {error}"
            log.warning("this machine must not serve any more, and could not be stopped: %s", error)

    def lift(self) -> None:
        """This machine is the server again. Raises Conflict, RecoveryError of the command, with the fence left up."""
        if self.now() is not None and UNFENCE in allowed(self._state):
            run_allowed(self._state, UNFENCE)
        self._path.unlink(missing_ok=True)
        self._failure = None

    def _keep(self, epoch: int, said: str) -> str:
        write_whole(self._path, json.dumps(asdict(Fence(epoch=epoch, boot_id=_boot_id(), said=said))).encode())
        self._failure = None
        return said


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""
