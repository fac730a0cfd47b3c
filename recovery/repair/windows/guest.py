"""Windows' files as boot repair needs them: found whatever the case of their names, hives with their logs replayed."""

from __future__ import annotations

from typing import Protocol

from agent.protocol.errors import RecoveryError
from recovery.repair.files import GuestFiles
from recovery.repair.windows.bins import MAX_HIVE_BYTES
from recovery.repair.windows.hive import Hive
from recovery.repair.windows.replay import MAX_LOG_BYTES, replay

SYSTEM_HIVE = "/Windows/System32/config/SYSTEM"
SOFTWARE_HIVE = "/Windows/System32/config/SOFTWARE"
HIBERNATION = "/hiberfil.sys"
HIBERNATION_HEADER_BYTES = 4096
_ACTIVE = (b"hibr", b"rstr")
"""What hiberfil.sys begins with while a session lies in it: saved, or being restored. After a start it begins with
"wake" or zeros, whatever lies behind."""
HIBERNATED = "Windows was hibernated, or shut down with Fast Startup, when this point was taken"
WAKE_IT = "take a point while it runs, or after a full shutdown (shutdown /s /t 0); powercfg /h off ends both"


class WindowsFiles(GuestFiles, Protocol):
    """GuestFiles of a replica whose Windows volume is the root ("/Windows/...") and whose EFI partition is "esp:"."""

    def read_start(self, path: str, length_bytes: int) -> bytes | None:
        """The first bytes of a plain file, however long it is; None if there is none."""
        ...


def any_case(path: str) -> str:
    """A shell pattern for the path in any spelling: the guest's filesystem, as we see it, tells upper from lower case,
    and Windows does not."""
    volume, colon, rest = path.rpartition(":")
    return volume + colon + "".join(f"[{char.upper()}{char.lower()}]" if char.isalpha() else char for char in rest)


def find(files: GuestFiles, path: str) -> str | None:
    """The path as it is spelt in the guest; None if there is nothing. Raises RecoveryError if two are so called."""
    found = files.glob(any_case(path))
    if len(found) > 1:
        raise RecoveryError(f"the replica has {path} {len(found)} times: {', '.join(found[:3])}", "keep one")
    return found[0] if found else None


def refuse_hibernated(files: WindowsFiles) -> None:
    """Raises RecoveryError for a Windows that was put to sleep, as `refuse_asleep` does."""
    path = find(files, HIBERNATION)
    refuse_asleep((files.read_start(path, HIBERNATION_HEADER_BYTES) if path else None) or b"")


def refuse_asleep(header: bytes) -> None:
    """Raises RecoveryError if hiberfil.sys, of which these are the first bytes, holds a Windows that was not shut down
    but put to sleep, by hibernation or Fast Startup: it would wake up on other hardware, and undo on the disk what it
    has in its memory otherwise."""
    if header[:4].lower() in _ACTIVE:
        raise RecoveryError(HIBERNATED, WAKE_IT)
    if header[:4].lower() != b"wake" and any(header):
        raise RecoveryError("hiberfil.sys begins as none that is known, so Windows may be hibernated", WAKE_IT)


def read_hive(files: GuestFiles, path: str) -> Hive | None:
    """A hive as Windows would see it, `path` as the guest spells it; None if there is none.

    Raises RecoveryError if it cannot be used as it is (DamagedHive, a dirty hive without its logs)."""
    content = files.read(path, MAX_HIVE_BYTES)
    if content is None:
        if files.glob(path):
            what = f"the registry hive {path} is no plain file, or has more than {MAX_HIVE_BYTES >> 20} MiB"
            raise RecoveryError(what, "take another recovery point, and repair that")
        return None
    logs = []
    for suffix in (".LOG1", ".LOG2", ".LOG"):
        found = find(files, path + suffix)
        log = files.read(found, MAX_LOG_BYTES) if found else None
        if log:
            logs.append(log)
    name = path.rpartition("/")[2]
    hive = Hive(name, replay(name, content, logs))
    hive.check()
    return hive


def is_program(content: bytes) -> bool:
    """Is it an executable for x86-64: a boot manager, a driver?"""
    header = int.from_bytes(content[60:64], "little")
    return content[:2] == b"MZ" and content[header : header + 6] == b"PE\0\0\x64\x86"
