"""What is on a worker's disks: partitions, logical volumes, and the filesystem on each, told by its first bytes."""

from __future__ import annotations

import re
import struct
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from recovery.repair.worker import CommandFailed, Worker

_SECTOR_BYTES = 512
_HEAD_BYTES = 68 << 10  # btrfs begins at 64 KiB
_TABLE_BYTES = 40 * _SECTOR_BYTES
_ESP_TYPE = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
_NO_FILESYSTEM = ("21686148-6449-6e6f-744e-656564454649", "05", "0f", "85")  # BIOS boot; extended, which hold others
_MAX_LOGICAL_VOLUMES = 256
_LVM_CONFIG = "activation{udev_sync=0 udev_rules=0} devices{use_devicesfile=0} backup{backup=0 archive=0}"

_KERNEL_NAME = re.compile(r"/dev/(?:[shv]d([a-z])(\d*)|xvd([a-z])(\d*)|(?:nvme(\d+)n1|mmcblk(\d+))(?:p(\d+))?)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Filesystem:
    """`device` is its name in the worker. `kind`: ext4 (also 2 and 3), xfs, btrfs, vfat, ntfs, swap, lvm, luks;
    none where there can be no filesystem, empty for one that is not known.

    `disk` counts the volumes from 0, `partition` as in the table; both None for a logical volume, whose `names` are
    those that it has below /dev in the guest too."""

    device: str
    kind: str
    uuid: str = ""
    label: str = ""
    disk: int | None = None
    partition: int | None = None
    partition_uuid: str = ""
    is_esp: bool = False
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Disks:
    filesystems: tuple[Filesystem, ...]
    starts_by_bios: bool
    """The first disk has code in its first sector."""

    def by_kernel_name(self, name: str, sources: Sequence[str] = ()) -> Filesystem | None:
        """What a name such as /dev/sda1 meant at home. `sources`: what each volume was called there, if known; else
        the volumes are taken to have been its first disks, in their order."""
        found = _KERNEL_NAME.fullmatch(name)
        if found is None:
            return None
        letter, number = found[1] or found[3], found[2] or found[4] or found[7]
        disk = ord(letter) - ord("a") if letter else int(found[5] or found[6])
        whole = name.removesuffix(f"p{number}" if found[7] else number or "")
        if sources and all(_KERNEL_NAME.fullmatch(source) for source in sources):
            disk = sources.index(whole) if whole in sources else -1
        partition = int(number) if number else None
        return next((fs for fs in self.filesystems if (fs.disk, fs.partition) == (disk, partition)), None)


@dataclass(frozen=True, slots=True)
class _Partition:
    number: int
    uuid: str
    kind: str


def identify(worker: Worker, count: int) -> Disks:
    """Look at all disks; logical volumes are switched on. Raises RecoveryError."""
    found: list[Filesystem] = []
    heads: list[bytes] = []
    for index in range(count):
        disk = f"/dev/vd{chr(ord('a') + index)}"
        head = _head(worker, disk)
        heads.append(head)
        table = {partition.number: partition for partition in _partitions(head[:_TABLE_BYTES])}
        numbers = _numbers(worker, disk)
        if not numbers:
            kind, identity, label = signature(head)
            found.append(Filesystem(device=disk, kind=kind, uuid=identity, label=label, disk=index))
        for number in numbers:
            entry = table.get(number, _Partition(number, "", ""))
            kind, identity, label = signature(_head(worker, f"{disk}{number}"))
            found.append(
                Filesystem(
                    device=f"{disk}{number}",
                    kind=kind or ("none" if entry.kind in _NO_FILESYSTEM else ""),
                    uuid=identity,
                    label=label,
                    disk=index,
                    partition=number,
                    partition_uuid=entry.uuid,
                    is_esp=entry.kind in (_ESP_TYPE, "ef"),
                )
            )
    if any(filesystem.kind == "lvm" for filesystem in found) and worker.load("dm-mod"):
        found += _logical_volumes(worker)
    return Disks(tuple(found), starts_by_bios=any(heads[0][:440]) if heads else False)


def _head(worker: Worker, device: str) -> bytes:
    return worker.run("dd", f"if={device}", f"bs={_HEAD_BYTES}", "count=1", "iflag=fullblock")


def _numbers(worker: Worker, disk: str) -> list[int]:
    listed = worker.shell(f"cat /sys/class/block/{disk.removeprefix('/dev/')}/*/partition 2>/dev/null || true")
    return sorted(int(number) for number in listed.split() if number.isdigit())


def _partitions(head: bytes) -> Iterator[_Partition]:
    """Of a GPT, else of a DOS table; logical ones of the latter are left out."""
    if head[_SECTOR_BYTES : _SECTOR_BYTES + 8] == b"EFI PART":
        first, count, size = struct.unpack_from("<QII", head, _SECTOR_BYTES + 72)
        for number in range(1, min(count, 128) + 1):
            entry = head[at : at + 128] if (at := first * _SECTOR_BYTES + (number - 1) * size) < len(head) else b""
            if len(entry) == 128 and any(entry[:16]):
                kind, identity = (str(uuid.UUID(bytes_le=entry[at : at + 16])) for at in (0, 16))
                yield _Partition(number, identity, kind)
    elif head[510:512] == b"\x55\xaa":
        signature = int.from_bytes(head[440:444], "little")
        for number in range(1, 5):
            code = head[446 + 16 * (number - 1) + 4]
            if code:
                yield _Partition(number, f"{signature:08x}-{number:02x}", f"{code:02x}")


def signature(head: bytes) -> tuple[str, str, str]:
    """(kind, UUID, label) of the filesystem that begins with these bytes; all empty if it is none of ours."""
    if head[0x438:0x43A] == b"\x53\xef":
        return "ext4", _uuid(head[0x468:0x478]), _label(head[0x478:0x488])
    if head[:4] == b"XFSB":
        return "xfs", _uuid(head[32:48]), _label(head[108:120])
    if head[0x10040:0x10048] == b"_BHRfS_M":
        return "btrfs", _uuid(head[0x10020:0x10030]), _label(head[0x1012B:0x1022B])
    if head[4086:4096] == b"SWAPSPACE2":
        return "swap", _uuid(head[0x40C:0x41C]), _label(head[0x41C:0x42C])
    if head[:6] == b"LUKS\xba\xbe":
        return "luks", _label(head[168:208]), ""
    if any(head[at : at + 8] == b"LABELONE" for at in range(0, 4 * _SECTOR_BYTES, _SECTOR_BYTES)):
        return "lvm", "", ""
    if head[3:11] == b"NTFS    ":
        return "ntfs", f"{int.from_bytes(head[0x48:0x50], 'little'):016X}", ""
    for kind, at in ((b"FAT32   ", 0x43), (b"FAT16   ", 0x27), (b"FAT12   ", 0x27)):
        if head[at + 15 : at + 23] == kind:
            serial = int.from_bytes(head[at : at + 4], "little")
            return "vfat", f"{serial >> 16:04X}-{serial & 0xFFFF:04X}", _label(head[at + 4 : at + 15])
    return "", "", ""


def _uuid(content: bytes) -> str:
    return str(uuid.UUID(bytes=content)) if len(content) == 16 else ""


def _label(content: bytes) -> str:
    return content.split(b"\0")[0].decode(errors="replace").strip()


def _logical_volumes(worker: Worker) -> Iterator[Filesystem]:
    try:
        worker.run("/bin/lvm", "vgchange", "--config", _LVM_CONFIG, "-ay", "--sysinit")
        columns = ("--noheadings", "--separator", "/", "-o", "vg_name,lv_name")
        listed = worker.run("/bin/lvm", "lvs", "--config", _LVM_CONFIG, *columns)
    except CommandFailed:
        return  # a volume group that misses a disk, or no LVM in the worker: what is without it may be enough
    for line in listed.decode(errors="replace").split("\n")[:_MAX_LOGICAL_VOLUMES]:
        group, _, volume = line.strip().partition("/")
        if not (re.fullmatch(r"[\w+.-]+", group) and re.fullmatch(r"[\w+.-]+", volume)):
            continue
        mapped = f"/dev/mapper/{group.replace('-', '--')}-{volume.replace('-', '--')}"
        try:
            kind, identity, label = signature(_head(worker, mapped))
        except CommandFailed:
            continue  # not active: a thin pool, a snapshot's origin
        names = (mapped, f"/dev/{group}/{volume}")
        yield Filesystem(device=mapped, kind=kind, uuid=identity, label=label, names=names)
