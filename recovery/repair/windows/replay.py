"""Finishing the last writes of a hive from its transaction logs, as Windows does before it reads one.

A server that runs has dirty hives nearly always, and so has a crash-consistent point of it: what was written lately
is in `SYSTEM.LOG1` and `SYSTEM.LOG2` only. Editing such a hive as it is would lose that. Two formats: numbered entries
with hashes (HvLE, Windows 8.1 and later), and one set of dirty pages (DIRT, before).

Format: https://github.com/msuhanov/regf (Windows registry file format specification).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from agent.protocol.errors import RecoveryError
from recovery.repair.windows.bins import BASE_BLOCK_BYTES, MAX_HIVE_BYTES, DamagedHive, checksum, is_dirty

MAX_LOG_BYTES = 64 << 20
_SECTOR_BYTES = 512
_PAGE_BYTES = 512
_ENTRY = struct.Struct("<4s5IQQ")
_HASH_SEED = 0xC5554E7A884DEF82
_WORD = 0xFFFF_FFFF
_OLD_LOG, _OLD_LOG_OF_2000, _NEW_LOG = 1, 2, 6


@dataclass(frozen=True, slots=True)
class _Entry:
    sequence: int
    bins_bytes: int
    pages: tuple[tuple[int, memoryview], ...]


def replay(name: str, content: bytes, logs: Sequence[bytes]) -> bytes:
    """A clean hive: `content` itself if it is one, else with what the logs (LOG1, LOG2; those that exist) hold.

    Raises DamagedHive if it is no hive, RecoveryError if it is dirty and the logs do not complete it."""
    if len(content) < BASE_BLOCK_BYTES or content[:4] != b"regf":
        raise DamagedHive(f"the registry hive {name} is damaged: it does not begin as a hive does")
    if not is_dirty(content):
        return content
    usable = [log for log in logs if _is_log(log)]
    hive = bytearray(content)
    if checksum(content) != _word(content, 508):
        _restore_base_block(name, hive, usable)
    primary, secondary = _word(hive, 4), _word(hive, 8)
    new = [log for log in usable if _word(log, 28) == _NEW_LOG]
    last = _apply_entries(name, hive, range(secondary, primary + 2), new)
    if last is None:
        old = next((log for log in usable if _word(log, 28) != _NEW_LOG and _fits(log, hive)), None)
        if old is None:
            raise RecoveryError(
                f"the registry hive {name} was being written when the point was taken, and its transaction logs do not "
                "hold the rest",
                "take another recovery point (best after a restart of the server), and repair that",
            )
        last = max(_word(hive, 4), _apply_pages(name, hive, old))
    # One more than the last entry: what stays in the logs is older than the hive, also for its next crash.
    struct.pack_into("<2I", hive, 4, (last + 1) & _WORD, (last + 1) & _WORD)
    struct.pack_into("<I", hive, 508, checksum(hive))
    return bytes(hive)


def marvin32(data: bytes | memoryview, seed: int = _HASH_SEED) -> int:
    """The 64-bit hash that log entries carry."""
    low, high = seed & _WORD, seed >> 32
    padded = bytes(data) + b"\x80" + bytes(3 - len(data) % 4)
    for (word,) in struct.iter_unpack("<I", padded + bytes(4)):
        low = (low + word) & _WORD
        high ^= low
        low = ((low << 20 | low >> 12) + high) & _WORD
        high = (high << 9 | high >> 23) & _WORD ^ low
        low = ((low << 27 | low >> 5) + high) & _WORD
        high = (high << 19 | high >> 13) & _WORD
    return high << 32 | low


def _is_log(log: bytes) -> bool:
    return (
        _SECTOR_BYTES < len(log) <= MAX_LOG_BYTES
        and log[:4] == b"regf"
        and _word(log, 28) in (_OLD_LOG, _OLD_LOG_OF_2000, _NEW_LOG)
        and checksum(log) == _word(log, 508)
    )


def _restore_base_block(name: str, hive: bytearray, logs: Sequence[bytes]) -> None:
    """From the log that was written last: it holds a copy of the first sector."""
    if not logs:
        raise DamagedHive(f"the registry hive {name} is damaged: its first sector, and no log has a copy of it")
    newest = max(logs, key=lambda log: _word(log, 8))
    hive[:_SECTOR_BYTES] = newest[:_SECTOR_BYTES]
    struct.pack_into("<I", hive, 28, 0)


def _apply_entries(name: str, hive: bytearray, first: range, logs: Sequence[bytes]) -> int | None:
    """From one with a number in `first` on, while they follow one another; the last one's number, None without any."""
    entries = sorted((entry for log in logs for entry in _entries(log, first.start)), key=lambda entry: entry.sequence)
    last: int | None = None
    for entry in entries:
        if entry.sequence not in (first if last is None else (last, last + 1)):
            break
        _resize(name, hive, entry.bins_bytes)
        for offset, page in entry.pages:
            if offset + len(page) > entry.bins_bytes:
                raise DamagedHive(f"a transaction log of the registry hive {name} writes behind the hive's end")
            hive[BASE_BLOCK_BYTES + offset : BASE_BLOCK_BYTES + offset + len(page)] = page
        last = entry.sequence
    return last


def _entries(log: bytes, first: int) -> Iterator[_Entry]:
    """Whole entries with right hashes; the first bad one ends the log, as an unfinished write leaves it."""
    view = memoryview(log)
    at = _SECTOR_BYTES
    while at + _ENTRY.size <= len(log):
        signature, size, _, sequence, bins_bytes, count, hash_1, hash_2 = _ENTRY.unpack_from(log, at)
        body = at + _ENTRY.size
        if signature != b"HvLE" or size % _SECTOR_BYTES or not _ENTRY.size + 8 * count <= size <= len(log) - at:
            return
        if sequence >= first:
            if marvin32(view[at : at + 32]) != hash_2 or marvin32(view[body : at + size]) != hash_1:
                return
            pages = []
            data = body + 8 * count
            for offset, length in struct.iter_unpack("<2I", view[body:data]):
                if length > at + size - data:
                    return
                pages.append((offset, view[data : data + length]))
                data += length
            yield _Entry(sequence, bins_bytes, tuple(pages))
        at += size


def _fits(log: bytes, hive: bytearray) -> bool:
    """Was this old log finished, and made for the write that the hive was in?"""
    written = (struct.unpack_from("<Q", hive, 12)[0], struct.unpack_from("<Q", hive, BASE_BLOCK_BYTES + 20)[0])
    return _word(log, 4) == _word(log, 8) and struct.unpack_from("<Q", log, 12)[0] in written


def _apply_pages(name: str, hive: bytearray, log: bytes) -> int:
    """The dirty pages of an old log; its sequence number."""
    sector = _SECTOR_BYTES * min(max(_word(log, 44), 1), 8)
    bins_bytes = _word(log, 40)
    _resize(name, hive, bins_bytes)
    vector = log[sector + 4 : sector + 4 + bins_bytes // _PAGE_BYTES // 8]
    page_at = -(-(sector + 4 + len(vector)) // sector) * sector
    if log[sector : sector + 4] != b"DIRT" or len(vector) != bins_bytes // _PAGE_BYTES // 8:
        raise DamagedHive(f"the transaction log of the registry hive {name} is damaged: it has no list of pages")
    for number in (8 * byte + bit for byte, bits in enumerate(vector) for bit in range(8) if bits >> bit & 1):
        page = log[page_at : page_at + _PAGE_BYTES]
        if len(page) != _PAGE_BYTES:
            raise DamagedHive(f"the transaction log of the registry hive {name} is damaged: it ends too early")
        start = BASE_BLOCK_BYTES + number * _PAGE_BYTES
        hive[start : start + _PAGE_BYTES] = page
        page_at += _PAGE_BYTES
    return _word(log, 8)


def _resize(name: str, hive: bytearray, bins_bytes: int) -> None:
    if bins_bytes % 4096 or not 0 < bins_bytes <= MAX_HIVE_BYTES - BASE_BLOCK_BYTES:
        raise DamagedHive(f"a transaction log of the registry hive {name} gives it {bins_bytes} bytes")
    hive.extend(bytes(max(0, BASE_BLOCK_BYTES + bins_bytes - len(hive))))
    struct.pack_into("<I", hive, 40, bins_bytes)


def _word(block: bytes | bytearray, offset: int) -> int:
    value: int = struct.unpack_from("<I", block, offset)[0]
    return value
