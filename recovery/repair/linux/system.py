"""Finding the Linux system on a worker's disks, and mounting as much of it as its boot needs."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from recovery.repair.disks import Disks, Filesystem
from recovery.repair.guest import WorkerFiles
from recovery.repair.worker import CommandFailed

_ROOT_KINDS = ("ext4", "xfs", "btrfs")
_SUBVOLUMES = ("", "subvol=@", "subvol=root", "subvol=@rootfs")
_NEEDED = ("/usr", "/boot", "/boot/efi", "/efi")
_SUBVOLUME = re.compile(r"subvol(id)?=[\w@/.-]+")
_DEVICE_LINK = re.compile(r"/dev/disk/by-(uuid|label|partuuid)/(.+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of /etc/fstab: `line` counts from 0."""

    line: int
    spec: str
    place: str
    kind: str
    options: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """A Linux system whose tree is mounted. `sources`: what its volumes were called at home ("/dev/sda"), if known.

    `name` and `family` (debian, rhel, suse, other) come from os-release; `has_esp`: `esp:` leads to its EFI partition.
    """

    name: str
    family: str
    disks: Disks
    root: Filesystem
    has_esp: bool
    sources: Sequence[str] = ()

    def find(self, spec: str) -> Filesystem | None:
        """The filesystem that a mount table's first field names, in any of the ways that there are."""
        return find(spec, self.disks, self.sources)


def find(spec: str, disks: Disks, sources: Sequence[str]) -> Filesystem | None:
    if link := _DEVICE_LINK.fullmatch(spec):
        spec = f"{link[1].upper()}={link[2]}"
    tag, _, value = spec.partition("=")
    value = value.strip('"')
    matches: Callable[[Filesystem], bool]
    if tag == "UUID":
        matches = lambda fs: fs.uuid.lower() == value.lower() != ""  # noqa: E731
    elif tag == "LABEL":
        matches = lambda fs: fs.label == value != ""  # noqa: E731
    elif tag == "PARTUUID":
        matches = lambda fs: fs.partition_uuid.lower() == value.lower() != ""  # noqa: E731
    elif any(spec in fs.names for fs in disks.filesystems):
        matches = lambda fs: spec in fs.names  # noqa: E731
    else:
        return disks.by_kernel_name(spec, sources)
    return next((fs for fs in disks.filesystems if matches(fs)), None)


def entries(table: str) -> Iterator[Entry]:
    """Of an fstab's text."""
    for number, line in enumerate(table.splitlines()):
        fields = line.split()
        if len(fields) >= 3 and not fields[0].startswith("#"):
            options = tuple(fields[3].split(",")) if len(fields) > 3 else ()
            place = posixpath.normpath(fields[1]) if fields[1].startswith("/") else fields[1]
            yield Entry(line=number, spec=fields[0], place=place, kind=fields[2], options=options)


def mount(files: WorkerFiles, disks: Disks, sources: Sequence[str] = ()) -> System | None:
    """Find the system and mount it; None if there is none. Raises RecoveryError."""
    root = next((fs for fs in disks.filesystems if fs.kind in _ROOT_KINDS and _mount_root(files, fs)), None)
    if root is None:
        return None
    table = [entry for entry in entries(_text(files, "/etc/fstab")) if entry.place in _NEEDED]
    esp = next((fs for fs in disks.filesystems if fs.is_esp and fs.kind == "vfat"), None)
    for entry in sorted(table, key=lambda entry: entry.place):
        filesystem = find(entry.spec, disks, sources)
        if filesystem is None or (filesystem is root and filesystem.kind != "btrfs"):
            continue
        if filesystem.kind == "vfat":
            esp = esp or filesystem
        elif filesystem.kind in _ROOT_KINDS:
            files.mount(filesystem, entry.place, next((o for o in entry.options if _SUBVOLUME.fullmatch(o)), ""))
    has_esp = False
    if esp is not None:
        files.mount_esp(esp)
        has_esp = True
        boot = next((entry.place for entry in table if find(entry.spec, disks, sources) is esp), "")
        if boot == "/boot":
            files.mount(esp, boot)  # kernels lie on it
    release = dict(re.findall(r'^(\w+)="?(.*?)"?$', _release(files), re.MULTILINE))
    return System(
        name=release.get("PRETTY_NAME", "Linux")[:80],
        family=_family(f"{release.get('ID', '')} {release.get('ID_LIKE', '')}"),
        disks=disks,
        root=root,
        has_esp=has_esp,
        sources=sources,
    )


def _mount_root(files: WorkerFiles, filesystem: Filesystem) -> bool:
    for options in _SUBVOLUMES if filesystem.kind == "btrfs" else ("",):
        try:
            files.mount_root(filesystem, options)
        except CommandFailed:
            continue  # no such subvolume, or what a filesystem's first bytes promised is not there
        if files.glob("/etc/fstab") and _release(files):
            return True
        files.unmount()
    return False


def _release(files: WorkerFiles) -> str:
    return _text(files, "/etc/os-release") or _text(files, "/usr/lib/os-release")


def _text(files: WorkerFiles, path: str) -> str:
    return (files.read(path, 1 << 20) or b"").decode(errors="replace")


def _family(names: str) -> str:
    words = names.lower().split()
    for family, members in (
        ("debian", ("debian", "ubuntu")),
        ("rhel", ("rhel", "fedora", "centos", "rocky", "almalinux", "ol", "amzn")),
        ("suse", ("suse", "sles", "opensuse")),
    ):
        if any(word in members for word in words):
            return family
    return "other"
