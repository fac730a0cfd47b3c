"""Instances: a folder each, with what was asked for, its own volumes and its QEMU's files."""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from agent.protocol.errors import Conflict, NotFound, SiteError
from recovery.sites.contract import Extent, Instance, InstanceSpec, InstanceState, VolumeKey
from recovery.sites.local import qcow2, record
from recovery.sites.local.durable import check_name, make_folder, storage_errors, sync_folder
from recovery.sites.local.qemu import (
    CONSOLE,
    Machine,
    available_memory_mib,
    check_machine,
    free_port,
    is_used,
)
from recovery.sites.local.record import Record
from recovery.sites.local.snapshot_io import SnapshotIO

_HOST = "127.0.0.1"
_PORT_TRIES = 5
# Terminal escapes (colours, cursor), and control characters but for newline and tab.
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b[@-_]|[\x00-\x08\x0b-\x1f\x7f]")


class Snapshots(Protocol):
    """What instances need of the replica volumes."""

    def existing_point(self, key: VolumeKey, point_id: str) -> Path: ...

    def unchanged(self, keys: list[VolumeKey]) -> AbstractContextManager[None]: ...


class Instances:
    """See the Site contract. `accel` gives the accelerator when the first instance starts."""

    def __init__(self, root: Path, snapshots: Snapshots, accel: Callable[[], str]) -> None:
        self._folder = root / "instances"
        self._snapshots = snapshots
        self._accel = accel
        self._launching = threading.Lock()
        self._open: set[SnapshotIO] = set()

    def objections(self, spec: InstanceSpec) -> list[str]:
        available = available_memory_mib()
        found = [f"port {port} of this machine is in use" for port in spec.ports.values() if port and is_used(port)]
        if available < spec.memory_mib:
            found.append(f"it needs {spec.memory_mib} MiB of memory, this machine has {available} left")
        if spec.network_name is not None:
            found.append(f"there is no network {spec.network_name!r} here: leave `networks` out of the plan")
        try:
            check_machine(spec)
            for key, point_id in spec.points:
                self._snapshots.existing_point(key, point_id)
        except (SiteError, NotFound) as error:
            found.append(str(error))
        return found

    def make(self, spec: InstanceSpec) -> Instance:
        with self._launching, storage_errors(f"make instance {spec.instance_id}"):
            self._made(spec)
        return self.watch(spec.instance_id)

    def launch(self, spec: InstanceSpec) -> Instance:
        with self._launching, storage_errors(f"launch instance {spec.instance_id}"):
            made = self._made(spec)
            machine = self._machine(spec.instance_id)
            if not machine.was_started and made.spec.devices is not spec.devices:  # found out since it was made
                made = Record(replace(made.spec, devices=spec.devices), made.host_ports)
                record.write(machine.folder, made)
            if machine.pid() is None:
                self._start(made, machine)
        return self.watch(spec.instance_id)

    def volume_location(self, instance_id: str, index: int) -> Path:
        return self._existing_volume(instance_id, index)

    def watch(self, instance_id: str) -> Instance:
        with storage_errors(f"watch instance {instance_id}"):
            known = self._record(instance_id)
            if known is None:
                return Instance(
                    instance_id=instance_id, run_id="", server_id="", state=InstanceState.GONE, machine_id=""
                )
            machine = self._machine(instance_id)
            detail = ""
            if machine.pid() is not None:
                state = InstanceState.RUNNING
            elif machine.was_started:
                state = InstanceState.STOPPED
                detail = machine.last_words() or "the guest switched itself off"
            else:
                state = InstanceState.PENDING
                detail = "its start was cut off, or failed; launch it again"
        return Instance(
            instance_id=instance_id,
            run_id=known.spec.run_id,
            server_id=known.spec.server_id,
            state=state,
            machine_id=known.spec.machine_id,
            addresses={guest: (_HOST, host) for guest, host in known.host_ports.items()},
            network=known.spec.network,
            points=[point_id for _, point_id in known.spec.points],
            detail=detail,
        )

    def console(self, instance_id: str, last_bytes: int) -> str:
        with storage_errors(f"read the console of {instance_id}"):
            try:
                with open(self._machine(instance_id).folder / CONSOLE, "rb") as console:
                    console.seek(max(0, console.seek(0, os.SEEK_END) - last_bytes))
                    written = console.read(last_bytes)
            except FileNotFoundError:
                return ""
        return _CONTROL.sub("", written.decode(errors="replace"))

    def screenshot(self, instance_id: str) -> bytes:
        with storage_errors(f"take a picture of {instance_id}"):
            return self._running(instance_id).screenshot()

    def holds_connection(self, instance_id: str, port: int) -> bool:
        return self._running(instance_id).holds_connection(port)

    def _running(self, instance_id: str) -> Machine:
        self._existing(instance_id)
        machine = self._machine(instance_id)
        if machine.pid() is None:
            raise Conflict(f"instance {instance_id} does not run", "launch it first")
        return machine

    def stop(self, instance_id: str) -> None:
        self._existing(instance_id)
        machine = self._machine(instance_id)
        if machine.pid() is not None:
            machine.power_down()

    def end(self, instance_id: str) -> None:
        machine = self._machine(instance_id)
        with self._launching, storage_errors(f"end instance {instance_id}"):
            machine.kill()
            if machine.folder.exists():
                # renamed first: an instance is there whole, or not at all
                gone = machine.folder.with_name(f".{instance_id}.gone")
                shutil.rmtree(gone, ignore_errors=True)
                machine.folder.rename(gone)
                sync_folder(self._folder)
                shutil.rmtree(gone)

    def all(self) -> list[Instance]:
        found = (self._listed(instance_id) for instance_id in self._ids())
        return [instance for instance in found if instance.state is not InstanceState.GONE]

    def _listed(self, instance_id: str) -> Instance:
        """One whose record is damaged takes no other along: nobody knows whose it is, and so nobody ends it unasked."""
        try:
            return self.watch(instance_id)
        except SiteError as error:
            runs = self._machine(instance_id).pid() is not None
            state = InstanceState.RUNNING if runs else InstanceState.STOPPED
            return Instance(
                instance_id=instance_id, run_id="", server_id="", state=state, machine_id="", detail=str(error)
            )

    def changes(self, instance_id: str, index: int) -> list[Extent]:
        path = self._existing_volume(instance_id, index)
        machine = self._machine(instance_id)
        if machine.pid() is not None:
            machine.write_out_metadata(index)
        return qcow2.allocated(path)

    def open_volume(self, instance_id: str, index: int) -> SnapshotIO:
        path = self._existing_volume(instance_id, index)
        with self._launching:
            if self._machine(instance_id).pid() is not None:
                raise Conflict(f"instance {instance_id} runs", "stop it first, and wait until it has")
            key, point_id = self._existing(instance_id).spec.points[index]
            point = self._snapshots.existing_point(key, point_id)
            layers, size_bytes = [path, *qcow2.layers(point)], qcow2.read_header(point).size_bytes
            io = SnapshotIO(layers, size_bytes, on_close=lambda: self._open.discard(io))
            self._open.add(io)
            return io

    def close_volumes(self) -> None:
        """Close what callers left open; the instances go on."""
        for io in list(self._open):
            io.close()

    def points_in_use(self, key: VolumeKey) -> set[str]:
        """Raises Conflict where that cannot be told: any may be."""
        used: set[str] = set()
        for instance_id in self._ids():
            try:
                known = self._record(instance_id)
            except SiteError as error:
                raise Conflict(f"instance {instance_id} may run from it: {error.message}", error.hint) from None
            if known is not None:
                used |= {point for of, point in known.spec.points if of == key}
            elif self._machine(instance_id).folder.exists():  # it was not ended just now
                raise Conflict(f"instance {instance_id} may run from it: its {record.NAME} is gone", record.WAY_OUT)
        return used

    def complete_ends(self) -> None:
        """What a crash cut off: folders that were being made or removed."""
        for left in [*self._folder.glob(".*.gone"), *self._folder.glob(".*.making")]:
            shutil.rmtree(left, ignore_errors=True)

    def mend_records(self) -> None:
        for instance_id in self._ids():
            record.mend(self._machine(instance_id).folder)

    def _made(self, spec: InstanceSpec) -> Record:
        """With its volumes. Found made already, it has to be from the same points."""
        made = self._record(spec.instance_id)
        if made is None:
            made = self._prepare(spec)
        elif made.spec.points != list(spec.points) or made.spec.machine_id != spec.machine_id:
            raise Conflict(f"instance {spec.instance_id} was launched from other points already", "end it first")
        self._make_volumes(made.spec, self._machine(spec.instance_id))
        return made

    def _prepare(self, spec: InstanceSpec) -> Record:
        """From here on the instance exists, and its points cannot be deleted."""
        available = available_memory_mib()
        if available < spec.memory_mib:
            raise SiteError(
                f"instance {spec.instance_id} needs {spec.memory_mib} MiB of memory, this machine has {available} left",
                "end other instances, or give it less memory in the plan",
            )
        if spec.network_name is not None:
            raise SiteError(f"site local has no network {spec.network_name!r}", "leave `networks` out of the plan")
        made = Record(spec, {guest: host or free_port() for guest, host in spec.ports.items()})
        making = self._folder / f".{check_name(spec.instance_id, 'an instance')}.making"
        with self._snapshots.unchanged([key for key, _ in spec.points]):
            for key, point_id in spec.points:
                self._snapshots.existing_point(key, point_id)
            make_folder(self._folder)
            shutil.rmtree(making, ignore_errors=True)
            making.mkdir()
            record.write(making, made)
            making.rename(self._folder / spec.instance_id)
            sync_folder(self._folder)
        return made

    def _make_volumes(self, spec: InstanceSpec, machine: Machine) -> None:
        for index, (key, point_id) in enumerate(spec.points):
            path = machine.volume(index)
            if not path.exists():
                point = self._snapshots.existing_point(key, point_id)
                qcow2.create(path, qcow2.read_header(point).size_bytes, os.path.relpath(point, path.parent))

    def _start(self, made: Record, machine: Machine) -> None:
        accel = self._accel()
        for tries_left in reversed(range(_PORT_TRIES)):
            try:
                return machine.start(made.spec, made.host_ports, accel)
            except SiteError as error:
                if machine.pid() is not None:
                    return None  # begun by a service that was killed just then
                mine = [guest for guest, asked in made.spec.ports.items() if asked == 0]
                if not tries_left or not mine or "forwarding rule" not in error.message:
                    raise
            # somebody else took a port that we had chosen: choose again
            made = Record(made.spec, {**made.host_ports, **{guest: free_port() for guest in mine}})
            record.write(machine.folder, made)
        return None

    def _ids(self) -> list[str]:
        with storage_errors("list the instances"):
            if not self._folder.is_dir():
                return []
            return sorted(path.name for path in self._folder.iterdir() if not path.name.startswith("."))

    def _machine(self, instance_id: str) -> Machine:
        return Machine(self._folder / check_name(instance_id, "an instance"))

    def _record(self, instance_id: str) -> Record | None:
        return record.read(self._machine(instance_id).folder)

    def _existing(self, instance_id: str) -> Record:
        with storage_errors(f"find instance {instance_id}"):
            known = self._record(instance_id)
        if known is None:
            raise NotFound(f"there is no instance {instance_id}")
        return known

    def _existing_volume(self, instance_id: str, index: int) -> Path:
        if not 0 <= index < len(self._existing(instance_id).spec.points):
            raise NotFound(f"instance {instance_id} has no volume {index}")
        path = self._machine(instance_id).volume(index)
        if not path.exists():
            raise NotFound(f"volume {index} of instance {instance_id} was not made yet", "launch the instance again")
        return path
