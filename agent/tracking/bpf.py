"""The bpf(2) system call: the six commands that tracking needs. Descriptors are plain ints; the caller closes them.

Every function raises OSError with the kernel's errno and a text that names what was refused.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import resource
import struct

# Little-endian 64-bit machines only: the layout of instructions and pointers below is theirs.
_SYSCALL_NUMBERS = {"x86_64": 321, "aarch64": 280}

_MAP_CREATE = 0
_MAP_UPDATE_ELEM = 2
_PROG_LOAD = 5
_OBJ_GET_INFO_BY_FD = 15
_RAW_TRACEPOINT_OPEN = 17

_MAP_TYPE_ARRAY = 2
_MAP_TYPE_ARRAY_OF_MAPS = 12
_MAP_FLAG_MMAPABLE = 1 << 10
_PROG_TYPE_RAW_TRACEPOINT = 17

_INFO_BYTES = 256
_RECURSION_MISSES_AT = 208  # u64 recursion_misses in struct bpf_prog_info
_LOG_BYTES = 1 << 20
_LOAD_TRIES = 20

_libc = ctypes.CDLL(None, use_errno=True)


def _bpf(what: str, command: int, attributes: bytes) -> tuple[int, bytes]:
    """One call; returns its result and the attributes as the kernel left them."""
    number = _SYSCALL_NUMBERS.get(platform.machine())
    if number is None or ctypes.sizeof(ctypes.c_void_p) != 8:
        raise OSError(errno.ENOSYS, f"{what}: not known for {platform.machine()}")
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    result = _libc.syscall(ctypes.c_long(number), ctypes.c_long(command), buffer, ctypes.c_ulong(len(attributes)))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return int(result), buffer.raw


def _create_map(kind: int, value_bytes: int, entries: int, flags: int, inner_map: int) -> int:
    attributes = struct.pack("<7I16s", kind, 4, value_bytes, entries, flags, inner_map, 0, b"understudy")
    what = "making a BPF map"
    try:
        return _bpf(what, _MAP_CREATE, attributes)[0]
    except PermissionError:
        # Before 5.11 a map's memory counts as locked memory of the process, and the usual limit is 64 KiB.
        with contextlib.suppress(ValueError):  # not allowed either: then the second refusal says all there is to say
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        return _bpf(what, _MAP_CREATE, attributes)[0]


def create_array(value_bytes: int, entries: int) -> int:
    """An array map (u32 key) whose memory can be mapped: `entries` values of `value_bytes`, all zero."""
    return _create_map(_MAP_TYPE_ARRAY, value_bytes, entries, _MAP_FLAG_MMAPABLE, 0)


def create_slot(inner_map: int) -> int:
    """An array of maps with one slot; `inner_map` is the pattern for what may be put there."""
    return _create_map(_MAP_TYPE_ARRAY_OF_MAPS, 4, 1, 0, inner_map)


def put_in_slot(slot_map: int, inner_map: int) -> None:
    """Put a map into the slot. When this returns, no program still uses the one that was there before."""
    key, value = ctypes.c_uint32(0), ctypes.c_uint32(inner_map)
    attributes = struct.pack("<IIQQQ", slot_map, 0, ctypes.addressof(key), ctypes.addressof(value), 0)
    _bpf("exchanging a BPF map", _MAP_UPDATE_ELEM, attributes)


def load_program(instructions: bytes) -> int:
    """Have the kernel verify and compile a raw tracepoint program; a refusal carries the verifier's last words."""
    code = ctypes.create_string_buffer(instructions, len(instructions))
    licence = ctypes.create_string_buffer(b"GPL")  # some helpers are for programs under the GPL only

    def attributes(log: ctypes.Array[ctypes.c_char] | None) -> bytes:
        return struct.pack(
            "<IIQQIIQII16s",
            _PROG_TYPE_RAW_TRACEPOINT,
            len(instructions) // 8,
            ctypes.addressof(code),
            ctypes.addressof(licence),
            0 if log is None else 1,
            0 if log is None else len(log),
            0 if log is None else ctypes.addressof(log),
            0,
            0,
            b"understudy",
        )

    what = "loading a BPF program"
    try:
        return _load(what, attributes(None))
    except OSError as error:
        log = ctypes.create_string_buffer(_LOG_BYTES)
        try:
            return _load(what, attributes(log))
        except OSError:
            # The first refusal is the one to report: the second may only say that the log did not fit.
            last_lines = log.value.decode(errors="replace").strip().splitlines()[-3:]
            text = f"{what}: {os.strerror(error.errno or 0)}"
            raise OSError(error.errno, "; ".join([text, *last_lines])) from error


def _load(what: str, attributes: bytes) -> int:
    """A signal to the process ends the verifier's work with EAGAIN: it is asked again, as libbpf does."""
    for _ in range(_LOAD_TRIES - 1):
        with contextlib.suppress(BlockingIOError):
            return _bpf(what, _PROG_LOAD, attributes)[0]
    return _bpf(what, _PROG_LOAD, attributes)[0]


def attach_raw_tracepoint(program: int, name: str) -> int:
    """Run the program at a tracepoint until the descriptor that is returned is closed."""
    text = ctypes.create_string_buffer(name.encode())
    attributes = struct.pack("<QII", ctypes.addressof(text), program, 0)
    return _bpf(f"attaching to {name}", _RAW_TRACEPOINT_OPEN, attributes)[0]


def recursion_misses(program: int) -> int:
    """How often the kernel skipped the program because it was running on that CPU already.

    Kernels that skip also count; from one that does not have the counter the answer is 0.
    """
    info = ctypes.create_string_buffer(_INFO_BYTES)
    attributes = struct.pack("<IIQ", program, _INFO_BYTES, ctypes.addressof(info))
    _, answer = _bpf("asking for a BPF program's counters", _OBJ_GET_INFO_BY_FD, attributes)
    (known_bytes,) = struct.unpack_from("<I", answer, 4)
    if known_bytes < _RECURSION_MISSES_AT + 8:
        return 0
    (misses,) = struct.unpack_from("<Q", info.raw, _RECURSION_MISSES_AT)
    return int(misses)
