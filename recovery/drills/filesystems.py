"""Are a point's filesystems sound? Looked at in a worker VM, through scratch layers: the point stays as it is.

Journals are replayed by the worker's kernel first, as the guest's does when it boots: what is wrong then is damage.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

from recovery.drills.checkers import CHECKERS, Brought, pack
from recovery.drills.witness import CheckedFilesystem, CheckJob, Soundness
from recovery.repair import disks
from recovery.repair.disks import Filesystem
from recovery.repair.plain import plain
from recovery.repair.scratch import lay_over
from recovery.repair.worker import CommandFailed, Worker
from recovery.sites.local.durable import check_name, storage_errors

LIMIT_SECONDS = 1800.0
"""For one filesystem; what takes longer is left unknown."""
_SAID_BYTES = 16 << 10
_SAID_CHARACTERS = 300
_PROGRESS = re.compile(r"\s*(-|Pass \d|Phase \d|\[\d+/\d+\]|e2fsck \d|Opening filesystem|Checking filesystem|$)")
_PLACE = "/tmp/replay"  # noqa: S108  # in the worker's own memory


class FilesystemChecks:
    """Of a site whose snapshots are qcow2 files on this machine. `folder` holds scratch layers while a check is at
    work; `accel` gives kvm or tcg when a worker starts."""

    def __init__(self, folder: Path, accel: Callable[[], str]) -> None:
        self._folder = folder
        self._accel = accel

    def clear(self) -> None:
        """At the service's start: what checks that were cut off have left."""
        with storage_errors(f"remove {self._folder}"):
            if self._folder.exists():
                shutil.rmtree(self._folder)

    def __call__(self, job: CheckJob) -> list[CheckedFilesystem]:
        """Raises RecoveryError, SiteError, ToolMissing, StorageError."""
        brought = pack()
        folder = self._folder / check_name(f"{job.run_id}.{job.server_id}", "a check")
        try:
            layers = lay_over([Path(volume) for volume in job.volumes], folder)
            with Worker(layers, self._accel(), job.stopped, brought.entries) as worker:
                return [_check(worker, filesystem, brought) for filesystem in _checkable(worker, len(layers))]
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _checkable(worker: Worker, count: int) -> list[Filesystem]:
    """One of each: a btrfs over several disks is found on all of them."""
    found: dict[str, Filesystem] = {}
    for filesystem in disks.identify(worker, count).filesystems:
        if filesystem.kind in CHECKERS:
            spread = filesystem.kind == "btrfs" and filesystem.uuid
            found.setdefault(filesystem.uuid if spread else filesystem.device, filesystem)
    return list(found.values())


def _check(worker: Worker, filesystem: Filesystem, brought: Brought) -> CheckedFilesystem:
    checker = CHECKERS[filesystem.kind]
    command = brought.commands.get(filesystem.kind)
    if command is None:
        missing = f"{checker.program} is not installed on the service's machine: apt-get install {checker.package}"
        return _checked(filesystem, Soundness.UNKNOWN, missing)
    if checker.replay:
        _replay(worker, filesystem, checker.replay)
    line = shlex.join([*command, filesystem.device])
    answer = worker.shell(
        f"{line} >/tmp/said 2>&1; echo $?; head -c {_SAID_BYTES} /tmp/said", limit_seconds=LIMIT_SECONDS
    )
    status, _, said = answer.decode(errors="replace").partition("\n")
    if status.isdigit() and int(status) in checker.sound:
        return _checked(filesystem, Soundness.SOUND, "")
    complaints = [line.strip() for line in said.splitlines() if not _PROGRESS.match(line)]
    words = plain(" / ".join(complaints)[:_SAID_CHARACTERS])
    is_damage = status.isdigit() and int(status) in checker.damaged and checker.verdict in said
    return _checked(
        filesystem,
        Soundness.DAMAGED if is_damage else Soundness.UNKNOWN,
        words if is_damage else f"{checker.program} ended with status {plain(status)}: {words}",
    )


def _replay(worker: Worker, filesystem: Filesystem, options: str) -> None:
    """What cannot be mounted is checked as it is: the checker has better words for what is wrong with it."""
    worker.load(filesystem.kind)
    options = f"nodev,nosuid,noexec,{options}"
    with contextlib.suppress(CommandFailed):
        worker.run("mkdir", "-p", _PLACE)
        worker.run("mount", "-t", filesystem.kind, "-o", options, filesystem.device, _PLACE)
        worker.run("umount", _PLACE)


def _checked(filesystem: Filesystem, soundness: Soundness, said: str) -> CheckedFilesystem:
    where = filesystem.names[-1] if filesystem.names else f"volume {filesystem.disk}"
    if filesystem.partition is not None:
        where += f" partition {filesystem.partition}"
    return CheckedFilesystem(where=plain(where), kind=filesystem.kind, soundness=soundness, said=said)
