"""The local site: replica volumes are qcow2 chains in a folder, instances are QEMU processes on this machine."""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from agent.protocol.errors import Conflict
from recovery.sites.contract import Capacity, Extent, Instance, InstanceSpec, Price, Size, VolumeIO, VolumeKey
from recovery.sites.local.accel import choose
from recovery.sites.local.documents import Documents
from recovery.sites.local.durable import make_folder, storage_errors
from recovery.sites.local.instances import Instances
from recovery.sites.local.qemu import available_memory_mib
from recovery.sites.local.tools import end_left_behind
from recovery.sites.local.volumes import Volumes

_LOCK_SECONDS = 1.0
_SIZES = {
    "small": Size(cpus=1, memory_mib=1024),
    "medium": Size(cpus=2, memory_mib=2048),
    "large": Size(cpus=4, memory_mib=8192),
}


class LocalSite:
    """Implements `recovery.sites.contract.Site`. One process at a time has a folder; close() gives it back.

    Finding the folder as a killed process left it, the constructor ends what that process had qemu-img do, and
    completes what it was deleting. Instances go on running. Raises Conflict (another process has the folder),
    StorageError.
    """

    def __init__(self, root: Path, *, accel: str | None = None) -> None:
        """`accel`: `kvm` or `tcg`; None: UNDERSTUDY_ACCEL, else what works here."""
        self._root = root.absolute()
        self._forced_accel = accel
        self._accel: str | None = None
        self._accel_lock = threading.Lock()
        with storage_errors(f"open the site's folder {self._root}"):
            make_folder(self._root)
            self._root = self._root.resolve()
            self._lock: int | None = _lock(self._root)
        self._documents = Documents(self._root)
        self._volumes = Volumes(self._root, self._points_in_use)
        self._instances = Instances(self._root, self._volumes, self._choose_accel)
        try:
            end_left_behind(self._root)
            self._instances.complete_ends()
            self._instances.mend_records()
            self._volumes.complete_deletions()
        except BaseException:
            self.close()
            raise

    @property
    def name(self) -> str:
        return "local"

    def close(self) -> None:
        """Close the volumes that are open and let another process have the folder. May be called twice."""
        self._volumes.close()
        self._instances.close_volumes()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # --- replica volumes -------------------------------------------------------------------------------------

    def make_volume(self, key: VolumeKey, size_bytes: int) -> None:
        self._volumes.make(key, size_bytes)

    def open_volume(self, key: VolumeKey) -> VolumeIO:
        return self._volumes.open(key)

    def volume_exists(self, key: VolumeKey) -> bool:
        return self._volumes.exists(key)

    def changes(self, key: VolumeKey) -> list[Extent]:
        return self._volumes.changes(key)

    def revert(self, key: VolumeKey) -> None:
        self._volumes.revert(key)

    def snapshot(self, key: VolumeKey, point_id: str) -> None:
        self._volumes.snapshot(key, point_id)

    def open_snapshot(self, key: VolumeKey, point_id: str) -> VolumeIO:
        return self._volumes.open_snapshot(key, point_id)

    def snapshot_data(self, key: VolumeKey, point_id: str, within: Extent) -> list[Extent]:
        return self._volumes.snapshot_data(key, point_id, within)

    def snapshot_complaints(self, key: VolumeKey, point_id: str) -> list[str]:
        return self._volumes.snapshot_complaints(key, point_id)

    def repair_snapshot(self, key: VolumeKey, point_id: str, parts: Iterable[tuple[int, bytes]]) -> None:
        self._volumes.repair_snapshot(key, point_id, parts)

    def snapshots(self, key: VolumeKey) -> list[str]:
        return self._volumes.snapshots(key)

    def check_unused(self, key: VolumeKey, point_id: str) -> None:
        self._volumes.check_unused(key, point_id)

    def delete_snapshot(self, key: VolumeKey, point_id: str) -> None:
        self._volumes.delete_snapshot(key, point_id)

    def delete_volume(self, key: VolumeKey) -> None:
        self._volumes.delete(key)

    def volumes(self) -> list[VolumeKey]:
        return self._volumes.keys()

    def snapshot_location(self, key: VolumeKey, point_id: str) -> str:
        return str(self._volumes.existing_point(key, point_id))

    def free_bytes(self) -> int:
        with storage_errors("see how much space is left"):
            return shutil.disk_usage(self._root).free

    # --- documents -------------------------------------------------------------------------------------------

    def write_document(self, server_id: str, name: str, content: bytes) -> None:
        self._documents.write(server_id, name, content)

    def read_document(self, server_id: str, name: str) -> bytes:
        return self._documents.read(server_id, name)

    def delete_document(self, server_id: str, name: str) -> None:
        self._documents.delete(server_id, name)

    def documents(self, server_id: str | None = None) -> Iterator[tuple[str, str]]:
        return self._documents.names(server_id)

    # --- instances -------------------------------------------------------------------------------------------

    def capacity(self) -> Capacity:
        return Capacity(
            free_bytes=self.free_bytes(),
            free_memory_mib=available_memory_mib(),
            cpus=os.cpu_count(),
            sizes=_SIZES,
        )

    def objections(self, spec: InstanceSpec) -> list[str]:
        return self._instances.objections(spec)

    def make_instance(self, spec: InstanceSpec) -> Instance:
        return self._instances.make(spec)

    def instance_volume_location(self, instance_id: str, index: int) -> str:
        return str(self._instances.volume_location(instance_id, index))

    def launch(self, spec: InstanceSpec) -> Instance:
        return self._instances.launch(spec)

    def watch(self, instance_id: str) -> Instance:
        return self._instances.watch(instance_id)

    def console(self, instance_id: str, last_bytes: int = 65_536) -> str:
        return self._instances.console(instance_id, last_bytes)

    def screenshot(self, instance_id: str) -> bytes:
        return self._instances.screenshot(instance_id)

    def holds_connection(self, instance_id: str, port: int) -> bool:
        return self._instances.holds_connection(instance_id, port)

    def stop(self, instance_id: str) -> None:
        self._instances.stop(instance_id)

    def end(self, instance_id: str) -> None:
        self._instances.end(instance_id)

    def instances(self) -> list[Instance]:
        return self._instances.all()

    def instance_changes(self, instance_id: str, index: int) -> list[Extent]:
        return self._instances.changes(instance_id, index)

    def open_instance_volume(self, instance_id: str, index: int) -> VolumeIO:
        return self._instances.open_volume(instance_id, index)

    def price(self, spec: InstanceSpec) -> Price:
        return Price(memory_mib=spec.memory_mib, cpus=spec.cpus)

    def prepare(self) -> None:
        """Find out ahead what the first launch would have to: which acceleration works here takes seconds to try."""
        self._choose_accel()

    def _points_in_use(self, key: VolumeKey) -> set[str]:
        return self._instances.points_in_use(key)

    def _choose_accel(self) -> str:
        with self._accel_lock:
            if self._accel is None:
                self._accel = choose(self._root, self._forced_accel)
            return self._accel


def _lock(root: Path) -> int:
    """The descriptor that holds the folder's lock. Raises Conflict."""
    descriptor = os.open(root / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    # A service that was killed while it started a tool leaves a child that holds the lock until it has become the tool.
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise Conflict(
                    f"another process works in the site's folder {root}", "stop the other service first"
                ) from None
            time.sleep(0.02)
        else:
            return descriptor
