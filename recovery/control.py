"""What runs need from the rest of the service, besides the site. The service implements it over its store.

All calls block, and all may be repeated for the same run: the second call finds the first one's work and says so.
A `run_id` or `request_id` is only a key to tell a repetition by: an ended run takes a handover back as `RUN.end`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from agent.protocol.messages import Point


@dataclass(frozen=True, slots=True, kw_only=True)
class BootFinding:
    """`level`: `stop` would not come up elsewhere, `warn` may come up without something, `ok` was looked at."""

    level: str
    what: str
    way_out: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A protected server as recovery sees it. `state`: protected | failed_over | failing_back.

    `owner` is the machine id (hardware UUID) that may push for this identity now; None: whoever comes first.
    `last_seen_seconds` is how long ago the owner last made contact; None: never.
    `cpus`, `memory_mib` and `address` (with prefix length, like 192.0.2.7/24) are as the machine at home had them;
    None where its inventory does not tell. `boot_findings` is what its agent found that matters to a boot elsewhere,
    `boots_on` the disk controllers (virtio, nvme) that it needs no repair for, `boot_digest` changes with all of these.
    `windows`: that is what it runs.
    """

    id: str
    tenant: str
    name: str
    state: str
    epoch: int
    owner: str | None
    last_seen_seconds: float | None
    uefi: bool = False
    cpus: int | None = None
    memory_mib: int | None = None
    address: str | None = None
    boot_findings: tuple[BootFinding, ...] = ()
    boots_on: tuple[str, ...] = ()
    boot_digest: str | None = None
    windows: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandState:
    """How a command to an agent stands: done when `point`, `output` or `error` is set."""

    point: str | None = None
    output: str | None = None
    error: str | None = None


class Control(Protocol):
    def server(self, tenant: str, name: str) -> Server:
        """By name. Raises NotFound."""
        ...

    def points(self, server_id: str) -> list[Point]:
        """Newest first."""
        ...

    def hand_to_instance(self, server_id: str, machine_id: str, run_id: str, epoch: int | None = None) -> int:
        """Failover: raise the epoch; from now on only `machine_id` may push; state failed_over. Returns the epoch.

        `epoch`: the one that it was planned at. Raises Conflict when somebody else took the identity since."""
        ...

    def give_back(self, server_id: str, instance_machine_id: str, run_id: str) -> int:
        """Undo a failover: raise the epoch; the machine that was the server before is it again. Returns the epoch.
        If the instance is not the owner any more, nothing changes."""
        ...

    def retire_source(self, server_id: str, instance_machine_id: str, run_id: str) -> None:
        """The end of a migration: the instance stays the server, and its source never is it again; state protected."""
        ...

    def request_fence(self, server_id: str, request_id: str) -> None:
        """Ask the owner's agent to stop what the server does, and from then on to push only when asked to."""
        ...

    def release(self, server_id: str, request_id: str) -> None:
        """Take a fence back that no takeover followed."""
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

    def request_command(self, server_id: str, name: str, request_id: str) -> None:
        """Ask the owner's agent to run the command that its own configuration has under this name."""
        ...

    def request_state(self, request_id: str) -> CommandState: ...

    def capture(self, server_id: str, instance_id: str, label: str, request_id: str) -> str:
        """Make a point of a stopped instance's volumes, reading only what the site says may have changed.

        Returns the point's id; `request_id` makes the second call return the first one's point."""
        ...

    def pulled_volumes(self, point_id: str) -> set[int]:
        """Volumes of the point that a machine reported to have pulled and verified."""
        ...

    def pulled_bytes(self, point_id: str) -> int:
        """What those pulls brought over the wire, together."""
        ...

    def audit(self, tenant: str, action: str, detail: str) -> None: ...
