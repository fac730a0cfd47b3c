"""Boot repair as a step of a run: where its records are kept, and what the step says of it."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from agent.protocol.errors import RecoveryError
from recovery.actions.context import RepairJob
from recovery.repair import worker_image
from recovery.repair.record import RepairRecord, UndoReport, load
from recovery.repair.repair import repair, undo
from recovery.repair.target import Bus, Firmware, Target
from recovery.repair.windows.edit import missing_for_hives
from recovery.repair.windows.supplied import DriverFolder
from recovery.sites.contract import Devices
from recovery.sites.local.durable import check_name, storage_errors

DIFF = "repair.diff"
LOOK_SECONDS = 0.5


class BootRepair:
    """recovery.actions.Repairer of a site whose instances' volumes are qcow2 files on this machine.

    Records lie in `folder`/RUN/SERVER (of a copy: RUN/INSTANCE): repair.json with all that `undo` needs, repair.diff
    for people. `accel` gives kvm or tcg when a worker starts; `drivers` are the administrator's, for guests without
    their own."""

    def __init__(
        self,
        folder: Path,
        accel: Callable[[], str],
        drivers: DriverFolder,
        bus: Bus = Bus.VIRTIO,
        at_once: int | None = None,
    ) -> None:
        """`at_once`: so many workers at the same time; None: as many as there are processors."""
        self._folder = folder
        self._accel = accel
        self._drivers = drivers
        self._bus = bus
        self._turns = threading.Semaphore(at_once or os.cpu_count() or 1)

    @contextlib.contextmanager
    def turn(self, job: RepairJob) -> Iterator[None]:
        """A plan may boot hundreds of servers side by side; a worker for each would take all memory there is, just when
        it is needed. Raises RecoveryError (it was stopped while it waited)."""
        while not self._turns.acquire(timeout=LOOK_SECONDS):
            if job.stopped():
                raise RecoveryError(f"the repair of {job.server} was stopped before its turn came")
        try:
            yield
        finally:
            self._turns.release()

    def __call__(self, job: RepairJob) -> dict[str, Any]:
        folder = self.folder(job.run_id, job.record or job.server_id)
        with storage_errors(f"begin the boot repair of {job.server} anew"):
            # the volumes are as they were made: a record of changes to their predecessors tells nothing of them
            shutil.rmtree(folder, ignore_errors=True)
        bus = Bus(job.devices) if job.devices else self._bus
        target = Target(bus=bus, firmware=Firmware.UEFI if job.uefi else Firmware.BIOS)
        with self.turn(job):
            record = repair(
                [Path(volume) for volume in job.volumes],
                target,
                folder,
                sources=job.sources,
                supplied=self._drivers.of(job.server),
                host_name=job.host_name,
                instead=None if job.devices else Bus.AHCI,
                accel=self._accel(),
                stopped=job.stopped,
            )
        with storage_errors(f"keep {folder / DIFF}"):
            (folder / DIFF).write_text(record.diff(), errors="surrogateescape")
        if record.unrepaired:
            first = record.unrepaired[0]
            raise RecoveryError(f"{job.server} ({record.system}): {first.what}", first.way_out)
        return {
            "note": _note(record),
            "system": record.system,
            "changes": len(record.changes),
            "record": str(folder),
            "devices": record.bus if record.bus in tuple(Devices) else None,
        }

    def undo(self, job: RepairJob) -> dict[str, Any]:
        """For a failback, after the instance has stopped and before its last point."""
        folder = self.folder(job.run_id, job.record or job.server_id)
        volumes = [Path(volume) for volume in job.volumes]
        with self.turn(job):
            report = undo(volumes, folder, sources=job.sources, accel=self._accel(), stopped=job.stopped)
        return {"note": _undo_note(report), "undone": report.undone, "left": report.left}

    def missing_drivers(self, server: str) -> list[str]:
        """Files that this server would need, if it is a Windows without drivers, and that are not here."""
        return self._drivers.missing(server, self._bus)

    def missing_packages(self) -> list[str]:
        """Debian's, that the repair of a Windows needs on this machine."""
        return [*missing_for_hives(), *worker_image.missing_for_ntfs()]

    def record(self, run_id: str, server_id: str) -> RepairRecord | None:
        return load(self.folder(run_id, server_id))

    def folder(self, run_id: str, server_id: str) -> Path:
        return self._folder / check_name(run_id, "a run") / check_name(server_id, "a server")


def _undo_note(report: UndoReport) -> str:
    note = f"{len(report.undone)} changes of the boot repair were taken back"
    return f"{note}; left as they are: {'; '.join(report.left)}" if report.left else note


def _note(record: RepairRecord) -> str:
    if not record.changes:
        return f"{record.system} is ready as it is"
    names = ", ".join(dict.fromkeys(finding.what for finding in record.findings if finding.repaired))
    return f"{record.system}: repaired, because {names}"
