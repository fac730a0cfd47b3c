"""FIFREEZE, FITHAW, syncfs and mlockall: the one place of this package that knows Linux. All raise OSError."""

from __future__ import annotations

import ctypes
import fcntl
import os

_FIFREEZE = 0xC0045877
_FITHAW = 0xC0045878
_MCL_CURRENT, _MCL_FUTURE = 1, 2

_libc = ctypes.CDLL(None, use_errno=True)


def freeze_filesystem(descriptor: int) -> None:
    """Flush and stop all writes; returns when they have stopped. EBUSY: somebody froze it before us."""
    fcntl.ioctl(descriptor, _FIFREEZE, 0)


def thaw_filesystem(descriptor: int) -> None:
    """Let writes go on. EINVAL: it was not frozen (any more)."""
    fcntl.ioctl(descriptor, _FITHAW, 0)


def sync_filesystem(descriptor: int) -> None:
    """Write all of a filesystem's dirty data to its disk."""
    _check(_libc.syncfs(descriptor))


def lock_memory() -> None:
    """Keep all memory of this process resident, now and later: whoever froze a filesystem may not wait for it."""
    _check(_libc.mlockall(_MCL_CURRENT | _MCL_FUTURE))


def unlock_memory() -> None:
    """Undo lock_memory."""
    _check(_libc.munlockall())


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
