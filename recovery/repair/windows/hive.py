"""Registry hives, read strictly: regf files of Windows XP and later (format 1.3 to 1.6).

A guest's hive is not believed. Opening one checks the whole chain of bins and cells, and `walk` uses each cell once
only, so that cycles, shared cells and lengths that lie end in one RecoveryError, after work in proportion to the
file's size. What `walk` has passed is sound enough to be given to hivex, which writes (see edit.py).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from recovery.repair.windows.bins import Bins, CellMap, Used

MAX_ENTRIES = 1 << 20
"""Keys and values together; those of a Windows 10 are an eighth of it. Comparing two hives of so many takes 1 GiB."""
MAX_DEPTH = 512
_NONE = 0xFFFF_FFFF
_SEGMENT_BYTES = 16_344
_INLINE = 0x8000_0000
_ASCII_KEY_NAME, _ASCII_VALUE_NAME = 0x20, 0x01
_KEY = struct.Struct("<2sHQ15I2H")
_VALUE = struct.Struct("<2sHIIIHH")


def join(parent: str, name: str) -> str:
    return f"{parent}\\{name}" if parent else name


@dataclass(frozen=True, slots=True)
class Value:
    """`name` "" is the key's default value; `type` as in winnt.h (1 REG_SZ, 3 REG_BINARY, 4 REG_DWORD, ...)."""

    name: str
    type: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Key:
    offset: int
    parent: int
    name: str
    flags: int
    written: int
    class_name: bytes
    security: bytes
    subkey_count: int
    subkey_list: int
    value_count: int
    value_list: int
    largest: tuple[int, int, int] = field(compare=False)
    """In bytes: longest subkey name, longest value name (both as UTF-16), largest value."""

    def same_frame(self, other: Key) -> bool:
        """Equal in all but its values, its subkeys, and where it lies."""
        mine = (self.name, self.flags, self.written, self.class_name, self.security)
        return mine == (other.name, other.flags, other.written, other.class_name, other.security)


class Hive:
    """A hive's content, clean (see replay.py for those that are not). `name` is for messages: "SYSTEM"."""

    def __init__(self, name: str, content: bytes) -> None:
        self.name = name
        self.content = content
        self._bins = Bins(name, content)
        self.root = self._key(self._bins.root, set())
        self._is_checked = False
        self._looked_into: dict[int, dict[str, Key]] = {}

    def key(self, path: str) -> Key | None:
        r"""The key at `Select\Current` and the like; letter case does not matter."""
        found = self.root
        for part in path.split("\\") if path else ():
            children = self._looked_into.get(found.offset)
            if children is None:
                children = {child.name.upper(): child for child in self.subkeys(found)}
                self._looked_into[found.offset] = children
            child = children.get(part.upper())
            if child is None:
                return None
            found = child
        return found

    def value(self, path: str, name: str) -> Value | None:
        key = self.key(path)
        wanted = name.upper()
        return next((value for value in self.values(key) if value.name.upper() == wanted), None) if key else None

    def dword(self, path: str, name: str) -> int | None:
        """A REG_DWORD's number; None if there is no such value, or it is of another type."""
        value = self.value(path, name)
        return int.from_bytes(value.data, "little") if value and value.type == 4 and len(value.data) == 4 else None

    def check(self) -> None:
        """See to it that all of the hive is sound. Raises DamagedHive."""
        if not self._is_checked:
            for _ in self.walk():
                pass
            self._is_checked = True

    def walk(self) -> Iterator[tuple[str, Key, list[Value], list[Key]]]:
        """(path, key, values, subkeys) of every key, each cell used once. Raises DamagedHive."""
        used = self.all_unused()
        pending = [("", self.root, 0)]  # (path of the parent, key, depth): paths can be long, keys many
        count = 1
        while pending:
            parent, key, depth = pending.pop()
            path = join(parent, key.name) if depth else ""
            count += key.subkey_count + key.value_count
            if count > MAX_ENTRIES:
                raise self._bins.damaged(f"no system needs one with more than {MAX_ENTRIES} keys and values")
            subkeys = self.subkeys(key, used)
            if subkeys and depth == MAX_DEPTH:
                raise self._bins.damaged(f"keys are nested more than {MAX_DEPTH} deep")
            yield path, key, self.values(key, used), subkeys
            pending += [(path, child, depth + 1) for child in subkeys]

    def all_unused(self) -> CellMap:
        """To pass to subkeys() and values() of every key, from the root on, so that each cell is used once."""
        used = CellMap(self._bins.size_bytes)
        used.add(self.root.offset)
        return used

    def subkeys(self, key: Key, used: Used | None = None) -> list[Key]:
        """As stored: in the order of their upper-case names, in a hive that Windows wrote."""
        if not key.subkey_count:
            return []
        if key.subkey_count > MAX_ENTRIES:
            raise self._bins.damaged(f"key {key.name!r} says that it has {key.subkey_count} subkeys")
        used = set() if used is None else used
        kind, entries = self._bins.entries(key.subkey_list, used)
        if kind == b"ri":
            leaves = [self._bins.entries(leaf, used) for leaf in entries]
            if any(leaf_kind == b"ri" for leaf_kind, _ in leaves):
                raise self._bins.damaged(f"an index of indexes at {key.subkey_list:#x}")
            entries = [offset for _, leaf in leaves for offset in leaf]
        if len(entries) != key.subkey_count:
            raise self._bins.damaged(f"key {key.name!r} should have {key.subkey_count} subkeys and has {len(entries)}")
        children = [self._key(offset, used) for offset in entries]
        if len({child.name.upper() for child in children}) != len(children):
            raise self._bins.damaged(f"two subkeys of {key.name!r} have one name")
        if any(child.parent != key.offset for child in children):
            raise self._bins.damaged(f"a subkey of {key.name!r} belongs to another key")
        return children

    def values(self, key: Key, used: Used | None = None) -> list[Value]:
        if not key.value_count:
            return []
        if key.value_count > MAX_ENTRIES:
            raise self._bins.damaged(f"key {key.name!r} says that it has {key.value_count} values")
        used = set() if used is None else used
        listed = self._bins.cell(key.value_list, 4 * key.value_count, used)
        values = [self._value(offset, used) for offset in struct.unpack_from(f"<{key.value_count}I", listed)]
        if len({value.name.upper() for value in values}) != len(values):
            raise self._bins.damaged(f"two values of {key.name!r} have one name")
        return values

    def is_ordered(self, key: Key) -> bool:
        """Are the subkeys listed as Windows looks them up: by upper-case name, with the right hash or hint?"""
        names = [child.name.upper() for child in self.subkeys(key)]
        if names != sorted(names, key=lambda name: name.encode("utf-16-be", "surrogatepass")):
            return False
        if not names:
            return True
        kind, entries = self._bins.entries(key.subkey_list, set())
        hints: list[int] = []
        for leaf in entries if kind == b"ri" else [key.subkey_list]:
            cell = self._bins.cell(leaf, 4)
            if bytes(cell[:2]) != b"lh":
                return True
            count = int.from_bytes(cell[2:4], "little")
            hints += struct.unpack_from(f"<{2 * count}I", cell, 4)[1::2]
        return hints == [_hash(name) for name in names]

    def _key(self, offset: int, used: Used) -> Key:
        cell = self._bins.cell(offset, _KEY.size, used)
        signature, flags, written, *numbers, name_bytes, class_bytes = _KEY.unpack_from(cell)
        _, parent, subkey_count, _, subkey_list, _, value_count, value_list, security, class_at, *largest = numbers
        if signature != b"nk" or len(cell) < _KEY.size + name_bytes:
            raise self._bins.damaged(f"no key at {offset:#x}")
        name = self._name(cell[_KEY.size : _KEY.size + name_bytes], bool(flags & _ASCII_KEY_NAME))
        if "\\" in name:
            raise self._bins.damaged(f"a key has the name {name!r}")
        descriptor = b""
        if security != _NONE:
            header = self._bins.cell(security, 20)  # shared by design: many keys, one descriptor
            size = int.from_bytes(header[16:20], "little")
            if bytes(header[:2]) != b"sk" or len(header) < 20 + size:
                raise self._bins.damaged(f"no security descriptor at {security:#x}")
            descriptor = bytes(header[20 : 20 + size]) if size <= 0xFFFF else b""
        class_name = b""
        if class_at != _NONE and class_bytes:
            class_name = bytes(self._bins.cell(class_at, class_bytes, used)[:class_bytes])
        return Key(
            offset,
            parent,
            name,
            flags,
            written,
            class_name,
            descriptor,
            subkey_count,
            subkey_list,
            value_count,
            value_list,
            (largest[0] & 0xFFFF, largest[2], largest[3]),
        )

    def _value(self, offset: int, used: Used) -> Value:
        cell = self._bins.cell(offset, _VALUE.size, used)
        signature, name_bytes, length, data_at, kind, flags, _ = _VALUE.unpack_from(cell)
        if signature != b"vk" or len(cell) < _VALUE.size + name_bytes:
            raise self._bins.damaged(f"no value at {offset:#x}")
        name = self._name(cell[_VALUE.size : _VALUE.size + name_bytes], bool(flags & _ASCII_VALUE_NAME))
        if length & _INLINE:
            size = length & ~_INLINE
            if size > 4:
                raise self._bins.damaged(f"the value at {offset:#x} keeps {size} bytes in four")
            return Value(name, kind, bytes(cell[8 : 8 + size]))
        return Value(name, kind, self._data(data_at, length, used))

    def _data(self, offset: int, length: int, used: Used) -> bytes:
        if not length:
            return b""
        if length <= _SEGMENT_BYTES or not self._bins.has_big_data:
            return bytes(self._bins.cell(offset, length, used)[:length])
        if length > self._bins.size_bytes:
            raise self._bins.damaged(f"the data at {offset:#x} are larger than the hive")
        header = self._bins.cell(offset, 8, used)
        signature, count, list_at = struct.unpack_from("<2sHI", header)
        if signature != b"db" or count != -(-length // _SEGMENT_BYTES):
            raise self._bins.damaged(f"the data at {offset:#x} are not in {-(-length // _SEGMENT_BYTES)} segments")
        segments = struct.unpack_from(f"<{count}I", self._bins.cell(list_at, 4 * count, used))
        data = bytearray()
        for segment in segments:
            wanted = min(_SEGMENT_BYTES, length - len(data))
            data += self._bins.cell(segment, wanted, used)[:wanted]
        return bytes(data)

    def _name(self, raw: memoryview, ascii_name: bool) -> str:
        if ascii_name:
            return str(raw, "latin-1")
        if len(raw) % 2:
            raise self._bins.damaged("half a character in a name")
        return str(raw, "utf-16-le", "surrogatepass")


def _hash(name: str) -> int:
    """Of an upper-case name, as hash leaves hold it."""
    total = 0
    for (unit,) in struct.iter_unpack("<H", name.encode("utf-16-le", "surrogatepass")):
        total = (total * 37 + unit) & _NONE
    return total
