"""Files that survive a crash, and the one place where errors of the operating system become ours."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

from agent.protocol.errors import SiteError, StorageError, StorageFull

_FULL = (errno.ENOSPC, errno.EDQUOT)
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")


@contextlib.contextmanager
def storage_errors(doing: str) -> Iterator[None]:
    """OSError inside becomes StorageFull or StorageError. `doing`: "write the document x"."""
    try:
        yield
    except OSError as error:
        kind = StorageFull if error.errno in _FULL else StorageError
        where = f" {error.filename}" if error.filename else ""
        raise kind(f"cannot {doing}:{where} {os.strerror(error.errno or errno.EIO)}") from error


def check_name(name: str, what: str) -> str:
    """A name that becomes a file's. Raises SiteError for one that could mean another file."""
    if not _NAME.fullmatch(name):
        raise SiteError(f"{name!r} cannot name {what}", "use letters, digits, '.', '_' and '-', at most 200")
    return name


def sync_folder(folder: Path) -> None:
    """Entries made, renamed and removed in the folder are on stable storage when this returns."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def forget_cached(path: Path) -> None:
    """What is read next comes from the disk. Where that once failed to take something, the kernel says so once, and
    shows it all the same until it needs the memory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """With the parents that are missing, durably."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def write_file(path: Path, content: bytes) -> None:
    """Replace the file atomically and durably; what was there before stays whole if this fails."""
    new = path.with_name(f".{path.name}.new")
    try:
        with open(new, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError:
        new.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
