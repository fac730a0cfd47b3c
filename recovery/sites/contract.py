"""The Site contract: what a place where replicas live and boot must be able to do.

All calls block (callers run them in threads), and all may be repeated: each names what it makes, and finding it
already made is success. They raise SiteError, StorageError, StorageFull, ToolMissing, NotFound or Conflict.

A replica volume has one working state, which a push writes to, and snapshots, which never change. In words of
`local`: head.qcow2 on top of a chain of point files. In words of `aws`: an EBS volume and its EBS snapshots.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True, order=True)
class VolumeKey:
    """Which replica volume: the server's id, and the volume's place in the server's boot order."""

    server_id: str
    index: int


@dataclass(frozen=True, slots=True)
class Extent:
    offset: int
    length: int


class VolumeIO(Protocol):
    """An open volume. Calls may come from several threads at once. Offsets and lengths are bytes."""

    @property
    def size_bytes(self) -> int: ...

    def read(self, offset: int, length: int) -> bytes | bytearray:
        """Exactly `length` bytes."""
        ...

    def read_into(self, offset: int, into: memoryview) -> None:
        """The same into memory of the caller's; page-aligned memory and offsets are fastest."""
        ...

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None: ...

    def zero(self, offset: int, length: int) -> None:
        """Make the range read as zeros, without using space for it where the site can."""
        ...

    def flush(self) -> None:
        """All writes that have returned are on stable storage when this returns."""
        ...

    def close(self) -> None:
        """Release it; does not imply a flush. May be called twice."""
        ...


class InstanceState(enum.StrEnum):
    PENDING = "pending"
    RUNNING = "running"
    STOPPED = "stopped"
    """Not running; its volumes still exist and can be read."""
    GONE = "gone"
    """Ended, or never launched: nothing of it is left."""


class NetworkMode(enum.StrEnum):
    REAL = "real"
    ISOLATED = "isolated"
    """No way out: the guest reaches nothing; only the gates reach the guest."""


class Devices(enum.StrEnum):
    """What a guest's disks and its network card are, where the site can choose."""

    VIRTIO = "virtio"
    """The fastest; a guest needs drivers for them."""
    AHCI = "ahci"
    """AHCI disks and an e1000e card: slower, and Windows brings drivers for them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceSpec:
    """What to boot. `points` has one snapshot for each volume, in boot order; the snapshots stay as they are."""

    instance_id: str
    run_id: str
    server_id: str
    server_name: str
    points: Sequence[tuple[VolumeKey, str]]
    machine_id: str
    """A UUID that the guest sees as its hardware's (DMI product UUID), so that its agent can be told apart."""
    cpus: int = 2
    memory_mib: int = 1024
    network: NetworkMode = NetworkMode.ISOLATED
    ports: Mapping[int, int] = field(default_factory=dict)
    """Guest TCP port -> port at the site to reach it by; 0 lets the site choose."""
    uefi: bool = False
    devices: Devices = Devices.VIRTIO
    """What counts is what it is first started with."""
    size: str | None = None
    """The site's name for this size, where the plan asked by name; `cpus` and `memory_mib` say what it stands for."""
    network_name: str | None = None
    """Which of the site's networks; None: the site's own choice."""
    serials: Sequence[str] = ()
    """What each volume is to report as its disk's serial number, in boot order, where the site can choose that: its
    agent knows volumes by it (agent.protocol.serials). None given: the site's own choice."""
    address: str | None = None
    """With prefix length, like 10.0.0.7/24: the guest gets it from DHCP, and is reached there if it has it already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """An instance as it is now. `addresses`: guest TCP port -> (host, port) where the service reaches it."""

    instance_id: str
    run_id: str
    server_id: str
    state: InstanceState
    machine_id: str
    addresses: Mapping[int, tuple[str, int]] = field(default_factory=dict)
    network: NetworkMode = NetworkMode.ISOLATED
    points: Sequence[str] = ()
    """The snapshots it was launched from, in boot order."""
    detail: str = ""
    """Why it stopped or what it waits for, in words for an operator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What an instance uses while it runs. `per_hour` is None where nothing is charged; `known` False: it will cost
    something, and the site cannot tell what."""

    memory_mib: int
    cpus: int
    per_hour: float | None = None
    currency: str = "USD"
    known: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    cpus: int
    memory_mib: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What the site has to give now; None: nothing that would be a limit is known. `sizes` are its named ones."""

    free_bytes: int
    free_memory_mib: int | None = None
    cpus: int | None = None
    sizes: Mapping[str, Size] = field(default_factory=dict)


class Site(Protocol):
    """See the module's docstring."""

    @property
    def name(self) -> str: ...

    # --- replica volumes -------------------------------------------------------------------------------------

    def make_volume(self, key: VolumeKey, size_bytes: int) -> None:
        """See to it that the working state exists and has this size.

        New: all zeros. After a snapshot: the newest snapshot's content, cut or grown (with zeros). A working
        state that exists keeps its content, unless its own structures are damaged: then it is made anew."""
        ...

    def open_volume(self, key: VolumeKey) -> VolumeIO:
        """The working state, readable and writable; one at a time. Raises NotFound, Conflict (already open)."""
        ...

    def volume_exists(self, key: VolumeKey) -> bool:
        """Is there a working state?"""
        ...

    def changes(self, key: VolumeKey) -> list[Extent]:
        """Where the working state may differ from the newest snapshot (or from zeros); never less than it does.

        Rising, not overlapping. The working state must not be open."""
        ...

    def revert(self, key: VolumeKey) -> None:
        """Throw the working state away; make_volume starts again from the newest snapshot."""
        ...

    def snapshot(self, key: VolumeKey, point_id: str) -> None:
        """Turn the flushed, closed working state into snapshot `point_id`. Done already: does nothing."""
        ...

    def open_snapshot(self, key: VolumeKey, point_id: str) -> VolumeIO:
        """A snapshot, for reading; any number of times. Reads come from the medium itself, not from what some cache
        remembers of it. Writes raise Conflict."""
        ...

    def snapshot_data(self, key: VolumeKey, point_id: str, within: Extent) -> list[Extent]:
        """Where inside a range the snapshot may hold anything but zeros; never less than it does. Rising."""
        ...

    def snapshot_complaints(self, key: VolumeKey, point_id: str) -> list[str]:
        """What is wrong with how this snapshot itself is stored, a sentence each; its content is not looked at."""
        ...

    def repair_snapshot(self, key: VolumeKey, point_id: str, parts: Iterable[tuple[int, bytes]]) -> None:
        """Write over damaged (offset, bytes) of a snapshot, durably; who calls has proven that it held just these.

        The only change there is to a snapshot. Raises Conflict while the chain is in use, StorageError where the
        damage is such that a write could harm something else."""
        ...

    def snapshots(self, key: VolumeKey) -> list[str]:
        """Point ids, oldest first."""
        ...

    def check_unused(self, key: VolumeKey, point_id: str) -> None:
        """Raises what delete_snapshot would raise now. Changes nothing."""
        ...

    def delete_snapshot(self, key: VolumeKey, point_id: str) -> None:
        """Remove one; all others keep their content, whatever crashes in between; repeat to complete it.

        Raises Conflict while something (an open volume, an instance) uses the chain it is part of, StorageError where
        structures are so damaged that a merge could harm another snapshot; either leaves this one as it is."""
        ...

    def delete_volume(self, key: VolumeKey) -> None:
        """Remove the working state and every snapshot."""
        ...

    def volumes(self) -> list[VolumeKey]:
        """All replica volumes that the site holds something of."""
        ...

    def snapshot_location(self, key: VolumeKey, point_id: str) -> str:
        """Where an operator finds this snapshot without us: a file's path, an EBS snapshot's id."""
        ...

    def free_bytes(self) -> int:
        """Space left for replica data."""
        ...

    # --- documents that make points self-describing ------------------------------------------------------------

    def write_document(self, server_id: str, name: str, content: bytes) -> None:
        """Store a small named document beside the server's volumes, atomically and durably, replacing any."""
        ...

    def read_document(self, server_id: str, name: str) -> bytes:
        """Raises NotFound."""
        ...

    def delete_document(self, server_id: str, name: str) -> None:
        """Absent already: does nothing."""
        ...

    def documents(self, server_id: str | None = None) -> Iterator[tuple[str, str]]:
        """(server_id, name) of every document, or of one server's: a site has thousands of servers."""
        ...

    # --- instances ---------------------------------------------------------------------------------------------

    def capacity(self) -> Capacity: ...

    def objections(self, spec: InstanceSpec) -> list[str]:
        """What speaks against launching this now, in words, found without launching it; empty: nothing is known."""
        ...

    def make_instance(self, spec: InstanceSpec) -> Instance:
        """Make the instance's own volumes, and do not start it: launch() with the same spec does. Made already: says
        how it is."""
        ...

    def instance_volume_location(self, instance_id: str, index: int) -> str:
        """Where boot repair finds the volume of an instance that was made and not launched: a qcow2 file's path, an EBS
        volume's id."""
        ...

    def launch(self, spec: InstanceSpec) -> Instance:
        """Boot copies of the snapshots. The instance goes on when the service dies. Launched already: says how it is;
        stopped: starts it again from its own volumes."""
        ...

    def watch(self, instance_id: str) -> Instance:
        """How it is now; state GONE if the site knows nothing of it."""
        ...

    def console(self, instance_id: str, last_bytes: int = 65_536) -> str:
        """The end of what it wrote to its console (control characters removed); empty if there is none."""
        ...

    def screenshot(self, instance_id: str) -> bytes:
        """What its screen shows now, as PNG or JPEG. Raises NotFound, Conflict (it does not run)."""
        ...

    def holds_connection(self, instance_id: str, port: int) -> bool:
        """Does the guest itself hold a connection that was made to this port of its, and is still open? Where addresses
        are forwarded, the forwarder takes connections in its place, long before anything has booted. Raises NotFound,
        Conflict (it does not run), SiteError."""
        ...

    def stop(self, instance_id: str) -> None:
        """Ask the guest to shut down and return at once; watch() tells when it has."""
        ...

    def end(self, instance_id: str) -> None:
        """Stop it at once and remove all that was made for it. Gone already: does nothing."""
        ...

    def instances(self) -> list[Instance]:
        """All that are not GONE."""
        ...

    def instance_changes(self, instance_id: str, index: int) -> list[Extent]:
        """Where the instance's volume may differ from the snapshot it was launched from; never less. May be running."""
        ...

    def open_instance_volume(self, instance_id: str, index: int) -> VolumeIO:
        """A stopped instance's volume, for reading. Raises Conflict while it runs."""
        ...

    def price(self, spec: InstanceSpec) -> Price: ...
