"""QEMU's locks on an image file, as its own tools take them: what we write to is refused to them, and theirs to us.

Each permission that somebody has is a read lock on a byte of its own, each that they let nobody else have is one on
another byte. Who finds a lock of the opposite kind there may not go on. (QEMU: block/file-posix.c)
"""

from __future__ import annotations

import fcntl
import os
import struct
import time

from agent.protocol.errors import Conflict

_HELD_AT, _UNSHARED_AT = 100, 200
_CONSISTENT_READ, _WRITE, _WRITE_UNCHANGED, _RESIZE = range(4)
_HELD = (_CONSISTENT_READ, _WRITE, _WRITE_UNCHANGED, _RESIZE)
_UNSHARED = (_WRITE, _RESIZE)
_FLOCK = struct.Struct("hhqqi4x")  # type, whence, start, length, pid
_PATIENCE_SECONDS = 1.0
_LOOK_SECONDS = 0.02


def lock_for_writing(descriptor: int, name: str) -> None:
    """Until the descriptor is closed nobody else writes to the file. Raises Conflict where somebody has it."""
    for byte in [_HELD_AT + at for at in _HELD] + [_UNSHARED_AT + at for at in _UNSHARED]:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0))
    against = [_UNSHARED_AT + at for at in _HELD] + [_HELD_AT + at for at in _UNSHARED]
    # a tool that is being started has all our descriptors, until it has become the tool
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while any(_is_locked(descriptor, byte) for byte in against):
        if time.monotonic() > deadline:
            raise Conflict(
                f"cannot open {name}: another process uses the volume", "end the instance or wait until it is done"
            )
        time.sleep(_LOOK_SECONDS)


def _is_locked(descriptor: int, byte: int) -> bool:
    """By somebody else."""
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
    found = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked)
    return bool(_FLOCK.unpack(found)[0] != fcntl.F_UNLCK)
