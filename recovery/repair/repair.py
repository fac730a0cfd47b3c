"""Boot repair of a run's own volumes, and its undoing. Neither touches a recovery point.

The work is done on scratch layers over the volumes, by a worker VM. Only when all is done, and its record is kept, are
the layers merged into the volumes: whatever is cut off before that leaves them as they were, and is begun again; from
then on it is carried to its end. So both may be repeated.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from agent.protocol.errors import RecoveryError
from recovery.repair import disks
from recovery.repair.draft import Draft
from recovery.repair.files import GuestFiles
from recovery.repair.guest import WorkerFiles
from recovery.repair.linux import system as linux_system
from recovery.repair.linux.repair import draft_repair
from recovery.repair.plain import plain
from recovery.repair.record import FileChange, KeyChange, RepairRecord, UndoReport, load, save
from recovery.repair.scratch import lay_over, layer
from recovery.repair.target import Bus, Target
from recovery.repair.windows import repair as windows
from recovery.repair.windows import system as windows_system
from recovery.repair.windows.supplied import NOTHING_SUPPLIED, Supplied
from recovery.repair.worker import Worker
from recovery.sites.local import qcow2
from recovery.sites.local.accel import TCG
from recovery.sites.local.durable import storage_errors, sync_file, sync_folder, write_file

_UNDONE = "undone.json"

Stopped = Callable[[], bool]


def repair(
    volumes: Sequence[Path],
    target: Target,
    folder: Path,
    *,
    sources: Sequence[str] = (),
    supplied: Supplied = NOTHING_SUPPLIED,
    host_name: str | None = None,
    instead: Bus | None = None,
    accel: str = TCG,
    stopped: Stopped = lambda: False,
) -> RepairRecord:
    """Make a server's volumes (qcow2 files that are the run's own, in boot order, not in use) boot on `target`.

    `folder` is the run's own, one for each server: the record stays there, for review and for `undo`. `sources` are
    the volumes' names at home ("/dev/sda"), where known; `supplied` drivers for a Windows without them. A replica that
    is ready is left as it is, unless it is a copy, which gets an identity of its own and this `host_name`.
    `instead`: a Windows without drivers for the target's bus, for which none are supplied, is repaired for that one, as
    the record's target then says. Blocks.
    Raises RecoveryError (no system found, a disk that cannot be read), ToolMissing, SiteError, StorageError."""
    record = load(folder)
    if record is None:
        with _worker(volumes, folder, accel, stopped) as (worker, files):
            record = _repair_inside(worker, files, len(volumes), target, sources, supplied, host_name, instead)
        save(record, folder)
    _finish(volumes, folder, merge=bool(record.changes))
    return record


def undo(
    volumes: Sequence[Path],
    folder: Path,
    *,
    sources: Sequence[str] = (),
    accel: str = TCG,
    stopped: Stopped = lambda: False,
) -> UndoReport:
    """Take back what the record in `folder` says was changed, last change first; done already, or nothing: no harm.

    The volumes may have lived on since: a file that was changed again is left as it is, and named in the report."""
    record = load(folder)
    report = UndoReport()
    if record is None or not record.changes:
        return report
    if (folder / _UNDONE).exists():
        with storage_errors(f"read {folder / _UNDONE}"):
            report = UndoReport(**json.loads((folder / _UNDONE).read_bytes()))
        _finish(volumes, folder, merge=bool(report.undone))
        return report
    with _worker(volumes, folder, accel, stopped) as (worker, files):
        found = disks.identify(worker, len(volumes))
        if linux_system.mount(files, found, sources) is None and windows_system.mount(worker, files, found) is None:
            raise RecoveryError("the system whose boot repair is to be undone is not on the volumes")
        report.undone, report.left = windows.undo_keys(
            files, [change for change in record.changes if isinstance(change, KeyChange)]
        )
        for change in reversed(record.changes):
            if isinstance(change, FileChange):
                _undo_one(files, change, report)
    with storage_errors(f"keep {folder / _UNDONE}"):
        write_file(folder / _UNDONE, json.dumps(asdict(report)).encode())
    _finish(volumes, folder, merge=bool(report.undone))
    return report


def _repair_inside(
    worker: Worker,
    files: WorkerFiles,
    count: int,
    target: Target,
    sources: Sequence[str],
    supplied: Supplied,
    host_name: str | None,
    instead: Bus | None,
) -> RepairRecord:
    found = disks.identify(worker, count)
    system = linux_system.mount(files, found, sources)
    draft = Draft(files)
    keys: tuple[KeyChange, ...] = ()
    if system is not None:
        name = f"{system.name}, {system.root.kind}"
        findings = draft_repair(draft, system, target, host_name)
    elif (found_windows := windows_system.mount(worker, files, found)) is not None:
        name = "Windows"
        target, without = windows.fitting(files, target, supplied, instead)
        findings, keys = windows.draft_repair(
            draft,
            files,
            target,
            places=found_windows.places,
            data_volumes=count > 1,
            supplied=supplied,
            host_name=host_name,
        )
        findings = (*without, *findings)
    else:
        kinds = ", ".join(fs.kind or "unknown" for fs in found.filesystems) or "nothing"
        raise RecoveryError(
            f"no system to repair was found on the volumes (they hold: {kinds})",
            "boot it without repair, or protect the disk that holds the system too",
        )
    for change in draft.changes():
        _write(files, change)
    windows.write_keys(files, keys)
    findings = tuple(replace(finding, what=plain(finding.what), way_out=plain(finding.way_out)) for finding in findings)
    return RepairRecord(system=plain(name), target=str(target), findings=findings, changes=(*draft.changes(), *keys))


def _write(files: GuestFiles, change: FileChange) -> None:
    if change.after is None:
        files.remove(change.path)
    else:
        files.write(change.path, change.after, kept_bytes=change.kept_bytes, mode=change.mode)


def _undo_one(files: GuestFiles, change: FileChange, report: UndoReport) -> None:
    present = files.read(change.path)
    if present is not None:
        present = present[change.kept_bytes :] if len(present) >= change.kept_bytes else None
    if present == change.before:
        return
    if present != change.after:
        report.left.append(f"{change.path}: it was changed since the repair")
    elif change.before is None:
        files.remove(change.path)
        report.undone.append(change.path)
    else:
        files.write(change.path, change.before, kept_bytes=change.kept_bytes, mode=change.mode)
        report.undone.append(change.path)


@contextlib.contextmanager
def _worker(
    volumes: Sequence[Path], folder: Path, accel: str, stopped: Stopped
) -> Iterator[tuple[Worker, WorkerFiles]]:
    """A worker with scratch layers over the volumes; what was written is in these when this ends without an error."""
    scratch = _scratch(folder)
    layers = lay_over(volumes, scratch)
    try:
        with Worker(layers, accel, stopped) as worker:
            files = WorkerFiles(worker)
            yield worker, files
            files.unmount()
            worker.power_off()
        with storage_errors(f"keep {scratch}"):
            for written in layers:
                sync_file(written)
            sync_folder(scratch)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def _scratch(folder: Path) -> Path:
    return folder.resolve() / "scratch"


def _finish(volumes: Sequence[Path], folder: Path, *, merge: bool) -> None:
    """Merge the layers that are there into the volumes, if so wished, and remove them."""
    scratch = _scratch(folder)
    if not scratch.exists():
        return
    if merge:
        for index, volume in enumerate(volumes):
            qcow2.merge_down(layer(scratch, index), volume)
    with storage_errors(f"remove {scratch}"):
        # renamed first: the layers are there whole, or not at all
        gone = scratch.with_name(".scratch.gone")
        shutil.rmtree(gone, ignore_errors=True)
        scratch.rename(gone)
        sync_folder(folder)
        shutil.rmtree(gone)
