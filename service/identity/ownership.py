"""Who owns a server's identity: one table, pure, and the moves from one owner to the next.

    state         the machine that asks                             answer
    any           the owner                                         take
    any           the one retired by a failback or a migration      stand down
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

from agent.protocol.errors import Conflict
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
    """It must not replicate; `reason` and `hint` are for whoever reads that machine's log. `was_the_server`: so it has
    to stop what it serves, too."""

    reason: str
    hint: str
    was_the_server: bool = False


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
            f"machine {machine_id} was {server.name} once, and was retired when it moved on (epoch {server.epoch})",
            "it may be ended",
            was_the_server=True,
        )
    if server.state is ServerState.FAILED_OVER:
        return StandDown(
            f"{server.name} was failed over: instance {server.owner_machine} is {server.name} now "
            f"(epoch {server.epoch}), not machine {machine_id}",
            "keep this machine off the network its clients use; after a failback it is told to go on",
            was_the_server=machine_id == server.source_machine,
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
            was_the_server=machine_id == server.source_machine,
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


def handed_to_instance(
    server: ServerRow, machine_id: str, run_id: str, now: float, epoch: int | None = None
) -> ServerRow:
    """Failover. The second time for the same run: unchanged.

    `epoch`: the one that the run was planned at. Raises Conflict when the identity changed hands since."""
    if server.failover_run == run_id:
        return server
    if epoch is not None and server.epoch != epoch:
        raise Conflict(
            f"{server.name} has changed hands since {run_id} was planned (epoch {server.epoch}, not {epoch})",
            f"see who has it: understudy servers; then begin anew: understudy end {run_id}",
        )
    protected = server.state is ServerState.PROTECTED
    return dataclasses.replace(
        server,
        state=ServerState.FAILED_OVER,
        state_since=now,
        source_machine=server.owner_machine if protected else server.source_machine,
        stale=None,
        epoch=server.epoch + 1,
        owner_machine=machine_id,
        owner_since=now,
        retired_machine=None,
        home_arrived=False,
        failover_run=run_id,
        last_seen_at=None,
    )


def given_back(server: ServerRow, instance_machine_id: str, run_id: str, now: float) -> ServerRow:
    """A failover is undone: its source is the server again. Unchanged the second time for the same run, and when the
    instance is not the owner any more: a late word takes nothing from whom it does not concern."""
    if server.failback_run == run_id or server.owner_machine != instance_machine_id:
        return server
    return dataclasses.replace(
        server,
        state=ServerState.PROTECTED,
        state_since=now,
        epoch=server.epoch + 1,
        owner_machine=server.source_machine,
        owner_since=now,
        retired_machine=instance_machine_id,
        source_machine=None,
        home_arrived=False,
        failback_run=run_id,
        last_seen_at=None,
        stale=None,
    )


def source_retired(server: ServerRow, instance_machine_id: str, now: float) -> ServerRow:
    """A migration is over: the instance is the server for good. Not the owner any more: unchanged."""
    if server.owner_machine != instance_machine_id or server.state is not ServerState.FAILED_OVER:
        return server
    return dataclasses.replace(
        server,
        state=ServerState.PROTECTED,
        state_since=now,
        retired_machine=server.source_machine,
        source_machine=None,
    )


def handed_home(server: ServerRow, instance_machine_id: str, run_id: str, now: float) -> ServerRow:
    """Failback. Unchanged the second time for the same run, and when the instance is not the owner any more."""
    if server.failback_run == run_id or server.owner_machine != instance_machine_id:
        return server
    return dataclasses.replace(
        server,
        state=ServerState.FAILING_BACK,
        state_since=now,
        stale=None,
        epoch=server.epoch + 1,
        owner_machine=None,
        owner_since=None,
        retired_machine=instance_machine_id,
        home_arrived=False,
        failback_run=run_id,
        last_seen_at=None,
    )


def stood_down(server: ServerRow, machine_id: str, fenced: str | None, now: float) -> ServerRow:
    """Somebody came who is not the server, and was told so. `fenced`: what its agent says it has stopped."""
    known = server.stale if server.stale is not None and server.stale["machine"] == machine_id else None
    since = known["since"] if known else now
    told = fenced if fenced is not None or known is None else known["fenced"]
    return dataclasses.replace(server, stale={"machine": machine_id, "since": since, "seen_at": now, "fenced": told})


def settled(server: ServerRow, run_id: str, now: float) -> ServerRow:
    """The failback has ended. Not the one that handed home last: unchanged."""
    if server.failback_run != run_id or server.state is not ServerState.FAILING_BACK:
        return server
    return dataclasses.replace(server, state=ServerState.PROTECTED, state_since=now, source_machine=None)
