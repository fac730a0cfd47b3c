"""Disks named as the kernel at home, or their place in it, called them: in fstab, crypttab and the kernel's options."""

from __future__ import annotations

import re
from collections.abc import Iterator

from recovery.repair.disks import Filesystem
from recovery.repair.draft import Draft
from recovery.repair.linux import bootloader
from recovery.repair.linux.system import Entry, System, entries
from recovery.repair.record import Finding, Level

BOUND = r"/dev/(?:(?:[shv]d|xvd)[a-z]\d*|(?:nvme\d+n1|mmcblk\d+)(?:p\d+)?|disk/by-(?:id|path)/[\w:.+@-]+)(?![\w/])"
_FSTAB = "/etc/fstab"
_NEEDED_TO_BOOT = ("/", "/usr", "/boot")


def repair(draft: Draft, system: System) -> Iterator[Finding]:
    """Drafts UUIDs in place of such names; lets the boot go on without disks that were not replicated."""
    yield from _kernel_options(draft, system)
    yield from _fstab(draft, system)
    yield from _crypttab(draft, system)


def _kernel_options(draft: Draft, system: System) -> Iterator[Finding]:
    why = "the root disk has another name on other hardware"
    without_archive = not draft.glob("/boot/init*", "esp:/*/*/initrd*")
    # the kernel alone knows partitions, not filesystems, by their UUID
    by_partition = without_archive and system.root.partition_uuid
    root = f"PARTUUID={system.root.partition_uuid}" if by_partition else f"UUID={system.root.uuid}"
    named: set[str] = set()
    for path in bootloader.configurations(draft):
        text = draft.text(path)
        mended = text
        for option, value in re.findall(rf"\b(root|resume)=({BOUND})", text):
            named.add(f"{option}={value}")
            if option == "root":
                mended = re.sub(rf"\broot={re.escape(value)}(?![\w/])", f"root={root}", mended)
                continue
            swap = _bound(value, system)
            by_uuid = f"resume=UUID={swap.uuid}" if swap is not None and swap.kind == "swap" else ""
            mended = re.sub(rf"\bresume={re.escape(value)}(?![\w/])", by_uuid, mended)
        if path == bootloader.DEFAULTS:
            disabled = r"^(\s*)(GRUB_DISABLE_LINUX_UUID=[\"']?true)"
            if re.search(disabled, mended, re.MULTILINE):
                named.add("GRUB_DISABLE_LINUX_UUID=true")
                mended = re.sub(disabled, r"\1#\2", mended, flags=re.MULTILINE)
        if mended != text:
            bootloader.write(draft, path, mended, why)
    for name in sorted(named):
        level: Level = "stop" if name.startswith("root=") else "warn"
        yield Finding(level, f"the kernel is started with {name}, which is called otherwise elsewhere", repaired=True)


def _fstab(draft: Draft, system: System) -> Iterator[Finding]:
    lines = draft.text(_FSTAB).splitlines(keepends=True)
    for entry in entries("".join(lines)):
        can_wait = {"nofail", "noauto"} & set(entry.options)
        line = lines[entry.line]
        if re.fullmatch(BOUND, entry.spec):
            filesystem = system.root if entry.place == "/" else _bound(entry.spec, system)
            if filesystem is not None and filesystem.uuid and _is_kind(filesystem, entry):
                lines[entry.line] = line.replace(entry.spec, f"UUID={filesystem.uuid}", 1)
                level: Level = "warn" if can_wait or entry.kind == "swap" else "stop"
                what = f"/etc/fstab names {entry.spec} for {_use(entry)}"
                yield Finding(level, f"{what}, which is called otherwise elsewhere", repaired=True)
                continue
        elif not _is_missing(entry, system):
            continue
        if can_wait:
            continue
        what = f"/etc/fstab waits for {entry.spec} ({_use(entry)}), which is not among the volumes"
        if entry.place in _NEEDED_TO_BOOT:
            yield Finding("stop", what, "replicate that disk too: understudy-agent protect")
            continue
        lines[entry.line] = _with_nofail(line)
        yield Finding("stop", what, repaired=True)
    draft.write_text(_FSTAB, "".join(lines), "disks by what they hold, not by what a kernel called them")


def _crypttab(draft: Draft, system: System) -> Iterator[Finding]:
    path = "/etc/crypttab"
    text = draft.text(path)
    if not text:
        return
    for device in re.findall(rf"^[^#\s]\S*\s+({BOUND})", text, re.MULTILINE):
        filesystem = _bound(device, system)
        repaired = filesystem is not None and filesystem.kind == "luks" and bool(filesystem.uuid)
        if filesystem is not None and repaired:
            text = re.sub(rf"{re.escape(device)}(?![\w/])", f"UUID={filesystem.uuid}", text)
        yield Finding("stop", f"{path} names {device}", "use UUID=... instead", repaired=repaired)
    draft.write_text(path, text, "disks by what they hold, not by what a kernel called them")


def _bound(name: str, system: System) -> Filesystem | None:
    """What a bound name meant. by-id and by-path name no disk that we can tell, but a partition by its number."""
    if not name.startswith("/dev/disk/"):
        return system.disks.by_kernel_name(name, system.sources)
    part = re.search(r"-part(\d+)$", name)
    number = int(part[1]) if part else None
    candidates = [fs for fs in system.disks.filesystems if fs.disk is not None and fs.partition == number]
    return candidates[0] if len(candidates) == 1 else None


def _is_kind(filesystem: Filesystem, entry: Entry) -> bool:
    kind = "ext4" if entry.kind in ("ext2", "ext3") else entry.kind
    return kind in (filesystem.kind, "auto") or (kind == "msdos" and filesystem.kind == "vfat")


def _is_missing(entry: Entry, system: System) -> bool:
    """It names a local disk, and none of the volumes can be it."""
    if not re.match(r"(UUID|LABEL|PARTUUID)=|/dev/disk/by-(uuid|label|partuuid)/", entry.spec):
        return False
    unknown = any(fs.kind in ("", "luks") for fs in system.disks.filesystems)
    return not unknown and system.find(entry.spec) is None


def _with_nofail(line: str) -> str:
    fields = re.match(r"(\s*\S+\s+\S+\s+\S+)(\s+\S+)?", line)
    assert fields is not None, line
    return f"{fields[1]}{fields[2] or ' defaults'},nofail{line[fields.end() :]}"


def _use(entry: Entry) -> str:
    return "swap" if entry.kind == "swap" else entry.place
