"""What runs need from the rest of the service, besides the site. The service implements it over its store.

All calls block, and all may be repeated for the same run: the second call finds the first one's work and says so.
A `run_id` or `request_id` is only a key to tell a repetition by: an ended run takes a handover back as `RUN.end`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from agent.protocol.messages import Point


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A protected server as recovery sees it. `state`: protected | failed_over | failing_back.

    `owner` is the machine id (hardware UUID) that may push for this identity now; None: whoever comes first.
    `last_seen_seconds` is how long ago the owner last made contact; None: never.
    """

    id: str
    tenant: str
    name: str
    state: str
    epoch: int
    owner: str | None
    last_seen_seconds: float | None
    volume_paths: tuple[str, ...]
    volume_sizes: tuple[int, ...]
    uefi: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandState:
    """How a command to an agent stands: done when `point` or `error` is set."""

    point: str | None = None
    error: str | None = None


class Control(Protocol):
    def server(self, tenant: str, name: str) -> Server:
        """By name. Raises NotFound."""
        ...

    def points(self, server_id: str) -> list[Point]:
        """Newest first."""
        ...

    def hand_to_instance(self, server_id: str, machine_id: str, run_id: str) -> int:
        """Failover: raise the epoch; from now on only `machine_id` may push; state failed_over. Returns the epoch."""
        ...

    def hand_home(self, server_id: str, instance_machine_id: str, run_id: str) -> int:
        """Failback: raise the epoch; whoever comes first may push, but for the instance; state failing_back."""
        ...

    def home_arrived(self, server_id: str, run_id: str) -> bool:
        """Since hand_home of this run, has the machine at home made contact?"""
        ...

    def settle(self, server_id: str, run_id: str) -> None:
        """The end of a failback: state protected."""
        ...

    def request_point(self, server_id: str, label: str, request_id: str) -> None:
        """Ask the owner's agent for a point. `request_id` is the caller's, so that asking twice asks once."""
        ...

    def request_state(self, request_id: str) -> CommandState: ...

    def capture(self, server_id: str, instance_id: str, label: str, request_id: str) -> str:
        """Make a point of a stopped instance's volumes, reading only what the site says may have changed.

        Returns the point's id; `request_id` makes the second call return the first one's point."""
        ...

    def pulled_volumes(self, point_id: str) -> set[int]:
        """Volumes of the point that a machine reported to have pulled and verified."""
        ...

    def audit(self, tenant: str, action: str, detail: str) -> None: ...
