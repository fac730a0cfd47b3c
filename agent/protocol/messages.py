"""The JSON messages between agent and service, as dataclasses, and the one function that reads them.

A message is a JSON object. Fields this version does not know are ignored, so that either side may be newer;
fields it needs and does not find are a BadMessage that names them. Both sides send `Understudy-Protocol: 2`.

JSON can say more than can be kept: numbers without bounds, halves of characters. What comes in is kept for long (in
signed manifests, in the database), so whatever could not be read back is refused here, before anything is done with it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import types
import typing
from dataclasses import dataclass, field
from typing import Any, TypeVar

from agent.protocol.errors import BadMessage

PROTOCOL_VERSION = 2
BLOCKS_TYPE = "application/octet-stream"
"""Of bodies that are frames, sums or digests; all others are JSON."""
VERSION_HEADER = "Understudy-Protocol"
MAX_JSON_BYTES = 4 << 20
MAX_REQUESTS = 8
"""Of one push that are under way at once."""
MAX_VOLUMES = 128  # what one EC2 instance can have attached
MAX_DEPTH = 32
_NO_TEXT = re.compile("[\0\ud800-\udfff]")

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrollRequest:
    """What a machine says to get an identity; `token` is the secret part of the enrolment token."""

    token: str
    csr_pem: str
    hostname: str
    machine_id: str
    agent_version: str
    inventory: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrollReply:
    server_id: str
    server_name: str
    certificate_pem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RenewRequest:
    csr_pem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RenewReply:
    certificate_pem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PairingOpened:
    """What a machine that shows a code is told: under which id it asks for more, and how long the code is good."""

    pairing: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PairingLook:
    """The machine asks whether its code was typed; held so long. `refuse`: the code is worthless, forget it."""

    wait_seconds: int = 0
    refuse: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PairingStanding:
    """`element` and `proof` are the service's answer, once an operator typed the code."""

    element: str | None = None
    proof: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PairingProof:
    proof: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PairingSealed:
    """`sealed` is hex; opened by the machine alone, it is a PairingGrant as JSON."""

    sealed: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PairingGrant:
    """A one-time enrolment token, which carries the CA's fingerprint; what the machine is enrolled for; and the
    service's clock in seconds since 1970, for a machine whose own was lost."""

    token: str
    server: str
    now: float


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeDeclaration:
    """One source volume as the agent sees it now. `path` is its identity; the order is the boot order. `found_at`: the
    disk that it is on the machine that says so, where that is not at its path; for people to see."""

    path: str
    size_bytes: int
    block_bytes: int
    found_at: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """The agent's heartbeat. `wait_seconds` asks the service to hold the answer until there is a command. `fenced`:
    what it has stopped because it is not the server any more, in words."""

    machine_id: str
    agent_version: str
    wait_seconds: int = 0
    volumes: list[VolumeDeclaration] = field(default_factory=list)
    inventory: dict[str, Any] | None = None
    fenced: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """Something the service wants done. `kind` is `push`; `exec`: run the command that the agent's own configuration
    allows under the name `label`; `fence`: run the one named so, and push only when asked to; `unfence` takes that
    back. More kinds may come and are refused, not ignored."""

    id: str
    kind: str
    label: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HelloReply:
    """`stand_down` is the reason why this machine must not replicate now, or null. `fence`: it was the server, so it
    must not serve either."""

    server_id: str
    server_name: str
    epoch: int
    interval_seconds: int
    stand_down: str | None = None
    fence: bool = False
    commands: list[Command] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandResult:
    """One of `point` (of a push), `output` (the end of what an `exec` that succeeded wrote) and `error`."""

    command: str
    point: str | None = None
    output: str | None = None
    error: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BeginRequest:
    """Opens a push session. `supersedes` names the agent's own earlier session, which ends with this."""

    machine_id: str
    volumes: list[VolumeDeclaration]
    supersedes: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeStanding:
    """Where the replica volume stands: `root` (hex) over what it holds right now, `point` the newest one's id."""

    root: str
    point: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BeginReply:
    """`session` is also the id that the recovery point will have. `offers`: False where nothing could be copied, so
    that blocks which are zero at the replica may be sent without being offered. `requests`: how many of this push may
    be under way at once, so that many agents together need no more of the receiver than a few."""

    session: str
    epoch: int
    volumes: list[VolumeStanding]
    offers: bool = True
    requests: int = MAX_REQUESTS


@dataclass(frozen=True, slots=True, kw_only=True)
class BlocksReply:
    """`mismatched`: patched blocks that did not come out as announced; nothing of them was written. `offers` and
    `requests` as in BeginReply, from now on."""

    written_blocks: int
    mismatched: list[int] = field(default_factory=list)
    offers: bool = True
    requests: int = MAX_REQUESTS


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitRequest:
    """Asks for a recovery point. `roots` are hex, one a volume. `age_seconds` is how long ago, by the agent's
    monotonic clock, the instant was that the point shows: neither side trusts the other's wall clock."""

    roots: list[str]
    consistency: str
    completeness: str
    age_seconds: float
    label: str | None = None
    frozen_seconds: float = 0.0
    sent_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PointVolume:
    path: str
    size_bytes: int
    block_bytes: int
    root: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A recovery point as everybody sees it: agent, API and command line. `root` (hex) covers all volumes' roots."""

    id: str
    server: str
    taken_at: str
    consistency: str
    completeness: str
    root: str
    size_bytes: int
    sent_bytes: int
    epoch: int
    volumes: list[PointVolume]
    label: str | None = None
    verified_at: str | None = None
    bootable: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PulledReport:
    """The pulling agent's word that its disk now equals the volume: the root it computed from reading it back."""

    root: str
    machine_id: str
    received_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class HomewardReply:
    """What a repair target has to do for its server's failback. `action`: `none` (none is under way), `wait`, `pull`
    (all volumes of `point`), `boot` (the same, and then start from the disks written). `words` say to a person what is
    going on."""

    action: str
    words: str
    run: str | None = None
    stage: str | None = None
    point: str | None = None


def to_json(message: Any) -> dict[str, Any]:
    """A message as a JSON object."""
    return dataclasses.asdict(message)


def from_json(cls: type[T], document: Any, where: str = "") -> T:
    """`document` as a `cls`. Raises BadMessage naming the field that is missing or has the wrong type."""
    name = where or cls.__name__
    if not isinstance(document, dict):
        raise BadMessage(f"{name} is not a JSON object")
    hints = _hints(typing.cast("Any", cls))
    values: dict[str, Any] = {}
    for spec in dataclasses.fields(cls):  # type: ignore[arg-type]  # T is always a dataclass here
        label = f"{name}.{spec.name}"
        if spec.name in document:
            values[spec.name] = _checked(hints[spec.name], document[spec.name], label)
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            raise BadMessage(f"{label} is missing")
    return cls(**values)


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    """Evaluating annotations takes longer than all the checks, and every request asks for them."""
    return typing.get_type_hints(cls)


def _checked(hint: Any, value: Any, label: str) -> Any:
    origin = typing.get_origin(hint)
    if origin is types.UnionType:
        if value is None:
            return None
        hint = next(arm for arm in typing.get_args(hint) if arm is not type(None))
        return _checked(hint, value, label)
    if origin is list:
        if not isinstance(value, list):
            raise BadMessage(f"{label} is not a list")
        (item,) = typing.get_args(hint)
        return [_checked(item, entry, f"{label}[{at}]") for at, entry in enumerate(value)]
    if dataclasses.is_dataclass(hint):
        return from_json(typing.cast("type[Any]", hint), value, label)
    expected = dict if origin is dict else hint
    if expected is float and type(value) is int:
        _check_storable(value, label)  # float() has no place for any whole number either
        return float(value)
    # bool is an int to Python, and not to us
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        raise BadMessage(f"{label} should be {expected.__name__}, and is {type(value).__name__}")
    _check_storable(value, label)
    return value


def _check_storable(value: Any, label: str, depth: int = 0) -> None:
    """Raise BadMessage for what a database or a file could not give back as it was."""
    if depth > MAX_DEPTH:
        raise BadMessage(f"{label} is nested deeper than {MAX_DEPTH}")
    if isinstance(value, dict):
        for key, entry in value.items():
            _check_storable(key, label, depth + 1)
            _check_storable(entry, label, depth + 1)
    elif isinstance(value, list):
        for entry in value:
            _check_storable(entry, label, depth + 1)
    elif isinstance(value, str):
        if _NO_TEXT.search(value):
            raise BadMessage(f"{label} holds what is no text")
    elif isinstance(value, int):
        if not -(1 << 63) <= value < 1 << 63:
            raise BadMessage(f"{label} is a number of more than 64 bits")
    elif isinstance(value, float) and not math.isfinite(value):
        raise BadMessage(f"{label} is no finite number")
