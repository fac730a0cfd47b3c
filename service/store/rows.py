"""What the store gives and takes: plain data. Times are seconds since 1970."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any

from agent.protocol.messages import VolumeDeclaration

DEFAULT_TENANT = "default"


class ServerState(enum.StrEnum):
    PROTECTED = "protected"
    FAILED_OVER = "failed_over"
    """An instance at the site plays the server."""
    FAILING_BACK = "failing_back"
    """The identity was handed home, and the machine there has not been settled yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerRow:
    """A server and who owns its identity now.

    `owner_machine` None: whoever comes first, but for `retired_machine`. `owner_since` is when the owner became it.
    `source_machine` was the server before the failover. `stale`: who came all the same and was told to stand down, as
    {machine, since, seen_at, fenced}, the last being what its agent says it has stopped.
    `failover_run` and `failback_run` are the last ones that handed the identity on, so that repeating is harmless.
    `last_seen_at` is when the owner last made contact.
    """

    id: str
    tenant: str
    name: str
    created_at: float
    state: ServerState = ServerState.PROTECTED
    epoch: int = 1
    owner_machine: str | None = None
    owner_since: float | None = None
    retired_machine: str | None = None
    source_machine: str | None = None
    state_since: float | None = None
    stale: dict[str, Any] | None = None
    home_arrived: bool = False
    failover_run: str | None = None
    failback_run: str | None = None
    volumes: tuple[VolumeDeclaration, ...] = ()
    inventory: dict[str, Any] = field(default_factory=dict)
    last_seen_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateRow:
    """An agent's certificate. `machine_id` and `enrolled_at` are of the enrolment, and survive renewals."""

    serial: str
    tenant: str
    server_id: str
    machine_id: str
    enrolled_at: float
    not_after: float
    revoked: bool = False


class CommandProgress(enum.StrEnum):
    QUEUED = "queued"
    SENT = "sent"
    DONE = "done"


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandRow:
    """Something an agent is asked to do. Done when `point`, `output` or `error` is set."""

    id: str
    tenant: str
    server_id: str
    kind: str
    created_at: float
    label: str | None = None
    state: CommandProgress = CommandProgress.QUEUED
    sent_at: float | None = None
    point: str | None = None
    output: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanCheck:
    """How a plan (or a server, by its default plan) stood: `level` is green, amber or red. `price` None: unplanned."""

    plan: str
    level: str
    findings: list[dict[str, Any]]
    price: dict[str, Any] | None
    checked_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    tenant: str
    at: float
    who: str
    action: str
    detail: str
