"""Hives and transaction logs made for tests, and a guest's files in memory."""

from __future__ import annotations

import fnmatch
import lzma
import struct
from pathlib import Path

from recovery.repair.windows.bins import checksum
from recovery.repair.windows.hive import Hive
from recovery.repair.windows.hivedraft import HiveDraft
from recovery.repair.windows.replay import marvin32

DATA = Path(__file__).parent / "data"
SECTOR = 512
PAGE = 4096
NONE = 0xFFFFFFFF
WRITTEN = 132_000_000_000_000_000


class MemoryFiles:
    """WindowsFiles of a guest that lives in a dictionary; its filesystem tells upper from lower case."""

    def __init__(self, contents: dict[str, bytes]) -> None:
        self.contents = dict(contents)
        self.written: list[str] = []

    def read(self, path: str, limit_bytes: int = 256 << 20) -> bytes | None:
        content = self.contents.get(path)
        return content if content is not None and len(content) <= limit_bytes else None

    def read_start(self, path: str, length_bytes: int) -> bytes | None:
        content = self.contents.get(path)
        return None if content is None else content[:length_bytes]

    def glob(self, pattern: str) -> list[str]:
        folders = {path[:at] for path in self.contents for at in range(len(path)) if path[at] == "/"}
        return sorted(path for path in {*self.contents, *folders} if path and fnmatch.fnmatchcase(path, pattern))

    def write(self, path: str, content: bytes, *, kept_bytes: int = 0, mode: int = 0o644) -> None:
        self.written.append(path)
        self.contents[path] = self.contents.get(path, b"")[:kept_bytes] + content

    def remove(self, path: str) -> None:
        self.contents.pop(path, None)


def real_hive(name: str) -> bytes:
    """SYSTEM_WIN7 or SYSTEM_WIN_10_1709; the latter is dirty and came without its logs, so its header is set right."""
    return sealed(lzma.decompress((DATA / f"{name}.xz").read_bytes()))


def sealed(content: bytes, sequence: int | None = None) -> bytes:
    """With equal sequence numbers, and a right checksum."""
    hive = bytearray(content)
    number = struct.unpack_from("<I", hive, 4)[0] if sequence is None else sequence
    return headed(hive, number, number)


def headed(content: bytes | bytearray, primary: int, secondary: int) -> bytes:
    hive = bytearray(content)
    struct.pack_into("<2I", hive, 4, primary, secondary)
    struct.pack_into("<I", hive, 508, checksum(hive))
    return bytes(hive)


def small_hive() -> bytes:
    """A root key without anything in it."""
    descriptor = bytes.fromhex("010004800000000000000000000000001400000002000000")
    key_at, security_at = 32, 32 + 88
    key = struct.pack("<2sHQ", b"nk", 0x2C, WRITTEN)
    key += struct.pack("<15I", 0, 0, 0, 0, NONE, NONE, 0, NONE, security_at, NONE, 0, 0, 0, 0, 0)
    key += struct.pack("<2H", 4, 0) + b"ROOT"
    security = struct.pack("<2sH4I", b"sk", 0, security_at, security_at, 1, len(descriptor)) + descriptor
    cells = _cell(key, 88) + _cell(security, 48)
    free = PAGE - 32 - len(cells)
    bins = struct.pack("<4s2I8xQI", b"hbin", 0, PAGE, WRITTEN, 0) + cells + struct.pack("<i", free) + bytes(free - 4)
    base = struct.pack("<4s2IQ7I", b"regf", 1, 1, WRITTEN, 1, 5, 0, 1, key_at, PAGE, 1)
    return sealed(base.ljust(PAGE, b"\0") + bins)


def _cell(content: bytes, size: int) -> bytes:
    return (struct.pack("<i", -size) + content).ljust(size, b"\0")


def hive_with(values: dict[tuple[str, str], tuple[int, bytes]], name: str = "TEST") -> bytes:
    """(key, value's name) -> (type, data); an empty dictionary's keys are made too."""
    draft = HiveDraft(name, Hive(name, small_hive()))
    for (key, value), (kind, data) in values.items():
        draft.set(key, value, kind, data, "")
    return draft.result().content


def changed_pages(before: bytes, after: bytes) -> list[int]:
    """Offsets in the bins of 4 KiB pages that differ."""
    return [at - PAGE for at in range(PAGE, len(after), PAGE) if before[at : at + PAGE] != after[at : at + PAGE]]


def log_header(hive: bytes, sequence: int, kind: int) -> bytes:
    header = bytearray(hive[:SECTOR])
    struct.pack_into("<I", header, 28, kind)
    return headed(header, sequence, sequence)


def entry(after: bytes, pages: list[int], sequence: int) -> bytes:
    """A log entry of Windows 8.1 and later: these pages of `after`."""
    references = b"".join(struct.pack("<2I", at, PAGE) for at in pages)
    body = references + b"".join(after[PAGE + at : 2 * PAGE + at] for at in pages)
    size = -(-(40 + len(body)) // SECTOR) * SECTOR
    body = body.ljust(size - 40, b"\0")
    head = struct.pack("<4s5IQ", b"HvLE", size, 0, sequence, len(after) - PAGE, len(pages), marvin32(body))
    return head + struct.pack("<Q", marvin32(head)) + body


def new_log(before: bytes, sequence: int, *entries: bytes) -> bytes:
    return log_header(before, sequence, 6) + b"".join(entries)


def old_log(after: bytes, pages: list[int], sequence: int) -> bytes:
    """The log of Windows XP to 8."""
    bitmap = bytearray((len(after) - PAGE) // SECTOR // 8)
    for at in pages:
        bitmap[at // PAGE] = 0xFF
    vector = b"DIRT" + bytes(bitmap)
    vector = vector.ljust(-(-len(vector) // SECTOR) * SECTOR, b"\0")
    header = bytearray(log_header(after, sequence, 1))
    return bytes(header) + vector + b"".join(after[PAGE + at : 2 * PAGE + at] for at in pages)


def program(text: bytes = b"") -> bytes:
    """As much of an x86-64 executable as anybody looks at."""
    return b"MZ".ljust(60, b"\0") + struct.pack("<I", 64) + b"PE\0\0\x64\x86" + text
