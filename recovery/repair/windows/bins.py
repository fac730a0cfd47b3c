"""A registry hive's file: its base block, its bins, and the cells in these, checked as a chain.

All offsets inside a hive are relative to the end of its base block (4096 bytes).
"""

from __future__ import annotations

import struct

from agent.protocol.errors import RecoveryError

BASE_BLOCK_BYTES = 4096
MAX_HIVE_BYTES = 128 << 20
_NONE = 0xFFFF_FFFF
_BIN_BYTES = 4096
_LIST_ENTRY_BYTES = {b"li": 4, b"lf": 8, b"lh": 8, b"ri": 4}


class DamagedHive(RecoveryError):
    code = "damaged_hive"
    default_hint = "nothing was changed; take another recovery point, and repair that"


def checksum(base_block: bytes | bytearray | memoryview) -> int:
    """The XOR of the first 127 words; 0 and all ones are never written."""
    total = 0
    for word in struct.unpack_from("<127I", base_block):
        total ^= word
    return {0: 1, _NONE: _NONE - 1}.get(total, total)


def is_dirty(content: bytes | bytearray) -> bool:
    """Was a write under way when this was last on a disk? Then the transaction logs hold part of it."""
    primary, secondary = struct.unpack_from("<2I", content, 4)
    stored: int = struct.unpack_from("<I", content, 508)[0]
    return primary != secondary or stored != checksum(content)


class CellMap:
    """A set of cells, in one byte for each eight of the hive's."""

    def __init__(self, size_bytes: int) -> None:
        self._used = bytearray(size_bytes // 8 + 1)

    def __contains__(self, offset: int) -> bool:
        return bool(self._used[offset >> 3])

    def add(self, offset: int) -> None:
        self._used[offset >> 3] = 1


Used = CellMap | set[int]
"""Cells that were used so far: each may be used once."""


class Bins:
    """`root` is where the hive's root key should be. Raises DamagedHive unless every bin and cell is where it says."""

    def __init__(self, name: str, content: bytes) -> None:
        self.name = name
        self.content = content
        if len(content) > MAX_HIVE_BYTES:
            raise self.damaged(f"no system needs one of {len(content)} bytes")
        if len(content) < BASE_BLOCK_BYTES + _BIN_BYTES or content[:4] != b"regf":
            raise self.damaged("it does not begin as a hive does")
        if is_dirty(content):
            raise self.damaged("its last write was not finished, and its transaction logs were not replayed")
        major, minor, kind, layout, self.root, self.size_bytes = struct.unpack_from("<6I", content, 20)
        if major != 1 or not 3 <= minor <= 6 or kind != 0 or layout != 1:
            raise self.damaged(f"format {major}.{minor}, type {kind}.{layout} is not known")
        self.has_big_data = minor >= 4
        if self.size_bytes % _BIN_BYTES or not 0 < self.size_bytes <= len(content) - BASE_BLOCK_BYTES:
            raise self.damaged(f"it should hold {self.size_bytes} bytes of bins and does not")
        self._bins = memoryview(content)[BASE_BLOCK_BYTES : BASE_BLOCK_BYTES + self.size_bytes]
        self._starts = self._chain()

    def _chain(self) -> bytearray:
        """Check the chain of bins and the cells in each; marks (one byte for 8) where cells in use begin."""
        starts = bytearray(self.size_bytes // 8 + 1)
        at = 0
        while at < self.size_bytes:
            signature, offset, size = struct.unpack_from("<4s2I", self._bins, at)
            if signature != b"hbin" or offset != at or size % _BIN_BYTES or not 0 < size <= self.size_bytes - at:
                raise self.damaged(f"no bin at {at:#x}")
            end, cell = at + size, at + 32
            while cell < end:
                length = int.from_bytes(self._bins[cell : cell + 4], "little", signed=True)
                if not length or length % 8 or abs(length) > end - cell:
                    raise self.damaged(f"a cell of {abs(length)} bytes at {cell:#x}")
                if length < 0:
                    starts[cell >> 3] = 1
                cell += abs(length)
            at = end
        return starts

    def cell(self, offset: int, at_least: int, used: Used | None = None) -> memoryview:
        """A cell's content; `used` makes sure that nothing else used it."""
        if offset % 8 or offset >= self.size_bytes or not self._starts[offset >> 3]:
            raise self.damaged(f"{offset:#x} is referred to and is no cell in use")
        if used is not None:
            if offset in used:
                raise self.damaged(f"the cell at {offset:#x} is used twice")
            used.add(offset)
        length = -int.from_bytes(self._bins[offset : offset + 4], "little", signed=True)
        if length - 4 < at_least:
            raise self.damaged(f"the cell at {offset:#x} is too short")
        return self._bins[offset + 4 : offset + length]

    def entries(self, offset: int, used: Used) -> tuple[bytes, list[int]]:
        cell = self.cell(offset, 4, used)
        kind, count = bytes(cell[:2]), int.from_bytes(cell[2:4], "little")
        width = _LIST_ENTRY_BYTES.get(kind)
        if width is None or len(cell) < 4 + count * width:
            raise self.damaged(f"no list of subkeys at {offset:#x}")
        return kind, list(struct.unpack_from(f"<{count * width // 4}I", cell, 4)[:: width // 4])

    def damaged(self, what: str) -> DamagedHive:
        return DamagedHive(f"the registry hive {self.name} is damaged: {what}")
