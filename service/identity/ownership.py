"""Who owns a server's identity: one table, pure, and the moves from one owner to the next.

    state         the machine that asks                             answer
    any           the owner                                         take
    any           the one retired by a failback                     stand down
    failed_over   anyone else                                       stand down: the instance is the server now
    others        anyone else, and there is no owner                claim
    protected     one that enrolled itself after the owner came     claim, with the epoch raised
    others        anyone else                                       stand down, naming both machines

A machine is known by its hardware's UUID; the certificate says by which machine it was enrolled, so that a copied
state folder is told from a machine that an operator let in.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from service.store.rows import CertificateRow, ServerRow, ServerState


@dataclass(frozen=True, slots=True)
class Take:
    """It is the owner."""


@dataclass(frozen=True, slots=True)
class Claim:
    """It becomes the owner, if it wants to replicate. `raises_epoch`: somebody is replaced by it."""

    raises_epoch: bool


@dataclass(frozen=True, slots=True)
class StandDown:
    """It must not replicate; `reason` and `hint` are for whoever reads that machine's log."""

    reason: str
    hint: str


Decision = Take | Claim | StandDown


def normalized(machine_id: str) -> str:
    """UUIDs are written in either case."""
    return machine_id.strip().lower()


def decide(server: ServerRow, machine_id: str, certificate: CertificateRow) -> Decision:
    """`machine_id` must be normalized."""
    if machine_id == server.owner_machine:
        return Take()
    if machine_id == server.retired_machine:
        return StandDown(
            f"{server.name} has gone home, and machine {machine_id} was its instance at the recovery site",
            "it may be ended",
        )
    if server.state is ServerState.FAILED_OVER:
        return StandDown(
            f"{server.name} was failed over: instance {server.owner_machine} is {server.name} now "
            f"(epoch {server.epoch}), not machine {machine_id}",
            "keep this machine off the network its clients use; after a failback it is told to go on",
        )
    if server.owner_machine is None:
        return Claim(raises_epoch=False)
    enrolled_itself = certificate.machine_id == machine_id
    newer = server.owner_since is None or certificate.enrolled_at > server.owner_since
    if server.state is ServerState.PROTECTED and enrolled_itself and newer:
        return Claim(raises_epoch=True)
    if enrolled_itself:
        return StandDown(
            f"{server.name} belongs to machine {server.owner_machine} now, not to machine {machine_id}",
            f"if it is to be {server.name} again, enrol it anew: understudy enroll-token --name {server.name}",
        )
    return StandDown(
        f"two agents with one identity: machine {machine_id} came with the identity of {server.name}, "
        f"which is machine {server.owner_machine}",
        "enrol this one anew: understudy enroll-token (with --name if it replaces the other)",
    )


def claimed(server: ServerRow, machine_id: str, *, raises_epoch: bool, now: float) -> ServerRow:
    """The machine has become the owner."""
    return dataclasses.replace(
        server,
        owner_machine=machine_id,
        owner_since=now,
        epoch=server.epoch + raises_epoch,
        home_arrived=server.state is ServerState.FAILING_BACK,
        last_seen_at=None,
    )


def handed_to_instance(server: ServerRow, machine_id: str, run_id: str, now: float) -> ServerRow:
    """Failover. The second time for the same run: unchanged."""
    if server.failover_run == run_id:
        return server
    return dataclasses.replace(
        server,
        state=ServerState.FAILED_OVER,
        epoch=server.epoch + 1,
        owner_machine=machine_id,
        owner_since=now,
        retired_machine=None,
        home_arrived=False,
        failover_run=run_id,
        last_seen_at=None,
    )


def handed_home(server: ServerRow, instance_machine_id: str, run_id: str) -> ServerRow:
    """Failback. The second time for the same run: unchanged."""
    if server.failback_run == run_id:
        return server
    return dataclasses.replace(
        server,
        state=ServerState.FAILING_BACK,
        epoch=server.epoch + 1,
        owner_machine=None,
        owner_since=None,
        retired_machine=instance_machine_id,
        home_arrived=False,
        failback_run=run_id,
        last_seen_at=None,
    )


def settled(server: ServerRow, run_id: str) -> ServerRow:
    """The failback has ended. Not the one that handed home last: unchanged."""
    if server.failback_run != run_id or server.state is not ServerState.FAILING_BACK:
        return server
    return dataclasses.replace(server, state=ServerState.PROTECTED)
