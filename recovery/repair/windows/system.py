"""Finding the Windows on a worker's disks, and mounting it with the partition that starts it.

A server that runs has updates in its NTFS journal that are not in place yet, and so has a crash-consistent point of it.
ntfs-3g would throw them away when it mounts such a volume for writing. So every volume is looked at read-only first,
and those that are to be written get their journal replayed by ntfsrecover; where that fails, the repair is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from agent.protocol.errors import RecoveryError
from recovery.repair.disks import Disks, Filesystem
from recovery.repair.guest import WorkerFiles
from recovery.repair.windows import bcd
from recovery.repair.windows.guest import (
    HIBERNATED,
    HIBERNATION,
    HIBERNATION_HEADER_BYTES,
    SYSTEM_HIVE,
    WAKE_IT,
    any_case,
    refuse_asleep,
)
from recovery.repair.worker import CommandFailed, Worker

_BIOS_BOOT_MANAGER = "/bootmgr"
_TABLE_SECTORS = 40
_LOOK = "/look"
# exit codes of ntfs-3g.probe
_HIBERNATED, _UNCLEAN = 14, 15


@dataclass(frozen=True, slots=True)
class System:
    """A Windows whose volume is mounted as the root, and as `esp:` the partition with its boot manager: the EFI
    partition, or on a BIOS machine "System Reserved", where there is one. `places` None: the tables do not say."""

    root: Filesystem
    places: bcd.Places | None


@dataclass(frozen=True, slots=True)
class _Seen:
    has_windows: bool
    has_boot_manager: bool
    hibernation: bytes


def mount(worker: Worker, files: WorkerFiles, found: Disks) -> System | None:
    """The first Windows on the disks, for writing; None if there is none, and then nothing is mounted.

    Raises RecoveryError (hibernated, a journal that cannot be replayed, CommandFailed)."""
    seen = {filesystem: _look(worker, filesystem) for filesystem in found.filesystems if filesystem.kind == "ntfs"}
    root = next((filesystem for filesystem, look in seen.items() if look.has_windows), None)
    if root is None:
        return None
    refuse_asleep(seen[root].hibernation)
    efi = (filesystem for filesystem in found.filesystems if filesystem.is_esp and filesystem.kind == "vfat")
    bios = (filesystem for filesystem, look in seen.items() if look.has_boot_manager)
    starter = next(efi, None) or next(bios, root)
    for filesystem in {root, starter} & seen.keys():
        _replay_journal(worker, filesystem)
    files.mount_root(root, "norecover")
    if starter != root:
        files.mount_esp(starter)
    return System(root, _places(worker, found, starter, root))


def _look(worker: Worker, filesystem: Filesystem) -> _Seen:
    """Read-only, and outside the guest's tree: what is read is three names and one header."""
    worker.load("fuse")
    worker.run("mkdir", "-p", _LOOK)
    try:
        worker.run("/bin/ntfs-3g", "-o", "ro,nodev,nosuid,noexec", filesystem.device, _LOOK)
    except CommandFailed:
        return _Seen(False, False, b"")  # not every volume is needed; without a Windows, the caller says what was there
    try:
        windows, manager = (
            worker.shell(f"ls -d {_LOOK}{any_case(path)} 2>/dev/null || true")
            for path in (SYSTEM_HIVE, _BIOS_BOOT_MANAGER)
        )
        # a pipe would be waited for, and a link lead out of the volume
        only_a_file = f'for found in {_LOOK}{any_case(HIBERNATION)}; do [ -f "$found" ] && [ ! -L "$found" ] && '
        header = worker.shell(f'{only_a_file} head -c {HIBERNATION_HEADER_BYTES} "$found"; done; true')
        return _Seen(bool(windows), bool(manager), header)
    finally:
        worker.run("umount", _LOOK)


def _replay_journal(worker: Worker, filesystem: Filesystem) -> None:
    """Raises RecoveryError; then nothing was thrown away."""
    try:
        worker.run("/bin/ntfs-3g.probe", "--readwrite", filesystem.device)
    except CommandFailed as error:
        if error.status == _HIBERNATED:
            raise RecoveryError(HIBERNATED, WAKE_IT) from error
        if error.status != _UNCLEAN:
            raise
        try:
            worker.run("/bin/ntfsrecover", filesystem.device)
        except CommandFailed as failure:
            raise RecoveryError(
                f"the journal of the NTFS volume {filesystem.uuid} cannot be replayed here",
                "take a point after a shutdown, or boot this one without repair: Windows replays its journal itself",
            ) from failure


def _places(worker: Worker, found: Disks, starter: Filesystem, root: Filesystem) -> bcd.Places | None:
    places = dict(_partitions(worker, found))
    system, windows = (places.get((filesystem.disk, filesystem.partition)) for filesystem in (starter, root))
    return bcd.Places(known=frozenset(places.values()), system=system, windows=windows) if system and windows else None


def _partitions(worker: Worker, found: Disks) -> Iterator[tuple[tuple[int | None, int | None], bcd.Place]]:
    for disk in sorted({filesystem.disk for filesystem in found.filesystems if filesystem.disk is not None}):
        device = f"/dev/vd{chr(ord('a') + disk)}"
        head = worker.run("dd", f"if={device}", "bs=512", f"count={_TABLE_SECTORS}", "iflag=fullblock")
        for number, place in bcd.partitions(head).items():
            yield (disk, number), place
