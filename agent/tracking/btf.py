"""BTF, the kernel's own description of its types: where the members of its structures lie on this very kernel.

Offsets are never derived from a kernel's version: distributions carry changes back. The format is in the kernel's
Documentation/bpf/btf.rst: a header, then types (12 bytes and what follows for their kind), then names.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple

KERNEL_BTF = Path("/sys/kernel/btf/vmlinux")

_MAGIC = 0xEB9F
_HEADER = struct.Struct("<HBBIIIII")  # magic, version, flags, header bytes, types at, bytes, names at, bytes
_TYPE = struct.Struct("<III")  # name, info (members, kind, flag), size or type
_MEMBER = struct.Struct("<III")  # name, type, offset in bits
_PARAMETER_BYTES = 8

_INT, _POINTER, _ARRAY, _STRUCT, _UNION, _ENUM, _TYPEDEF = 1, 2, 3, 4, 5, 6, 8
_FUNCTION_TYPE, _VARIABLE, _SECTION, _TAG, _ENUM64 = 13, 14, 15, 17, 19
_LAST_KIND = 19
_FIXED_BYTES = {_INT: 4, _ARRAY: 12, _VARIABLE: 4, _TAG: 4}
_BYTES_PER_MEMBER = {_STRUCT: 12, _UNION: 12, _ENUM: 8, _FUNCTION_TYPE: 8, _SECTION: 12, _ENUM64: 12}


class BtfType(NamedTuple):
    """`at` is where what follows the 12 bytes common to all types begins; `type_id` is also a structure's size."""

    kind: int
    name_at: int
    members: int
    bit_fields: bool
    type_id: int
    at: int


class Btf:
    """Raises ValueError where the bytes are not BTF that this reader knows."""

    def __init__(self, raw: bytes) -> None:
        try:
            magic, version, _, header_bytes, types_at, types_bytes, names_at, names_bytes = _HEADER.unpack_from(raw)
        except struct.error as error:
            raise ValueError("BTF ends within its header") from error
        if magic != _MAGIC or version != 1:
            raise ValueError("not BTF of version 1 in this machine's byte order")
        types_at += header_bytes
        names_at += header_bytes
        if max(types_at + types_bytes, names_at + names_bytes) > len(raw):
            raise ValueError("BTF is cut short")
        self._raw = raw
        self._names = raw[names_at : names_at + names_bytes]
        self._positions = [0]  # of the type with this id; id 0 is void
        self._named: dict[tuple[int, int], list[int]] = {}  # structures and typedefs: (kind, name) -> ids
        at, end = types_at, types_at + types_bytes
        while at + _TYPE.size <= end:
            name_at, info, _ = _TYPE.unpack_from(raw, at)
            kind, members = info >> 24 & 31, info & 0xFFFF
            if not _INT <= kind <= _LAST_KIND:
                # Its length is unknown, so all that follows would be misread.
                raise ValueError(f"BTF has a type of unknown kind {kind}")
            if kind in (_STRUCT, _TYPEDEF):
                self._named.setdefault((kind, name_at), []).append(len(self._positions))
            self._positions.append(at)
            at += _TYPE.size + _FIXED_BYTES.get(kind, 0) + _BYTES_PER_MEMBER.get(kind, 0) * members
        if at != end:
            raise ValueError("BTF's last type is cut short")

    @classmethod
    def of_kernel(cls) -> Btf:
        """Of the running kernel. Raises OSError where it has none."""
        return cls(KERNEL_BTF.read_bytes())

    def member_offset(self, struct_name: str, member: str) -> int | None:
        """Bytes from the structure's begin to its member, also within unnamed parts; None if it has no such member.

        Raises LookupError if there is no such structure, several that differ, or the member is a bit field.
        """
        offsets = {self._offset_within(type_id, member) for type_id in self._ids(_STRUCT, struct_name)}
        if len(offsets) != 1:
            raise LookupError(f"the kernel has several structures {struct_name} that differ in {member}")
        (offset,) = offsets
        return offset

    def parameters(self, typedef: str) -> list[str | None]:
        """For a typedef of a pointer to a function: the structure that each parameter points to, or None.

        Raises LookupError if there is no such typedef.
        """
        pointer = self._type(self._type(self._ids(_TYPEDEF, typedef)[0]).type_id)
        function = self._type(pointer.type_id)
        if pointer.kind != _POINTER or function.kind != _FUNCTION_TYPE:
            raise LookupError(f"{typedef} is no pointer to a function")
        return [
            self._pointed_struct(struct.unpack_from("<I", self._raw, function.at + _PARAMETER_BYTES * i + 4)[0])
            for i in range(function.members)
        ]

    def _pointed_struct(self, type_id: int) -> str | None:
        if not type_id or (pointer := self._type(type_id)).kind != _POINTER or not pointer.type_id:
            return None
        target = self._type(pointer.type_id)
        return self._name(target.name_at) if target.kind == _STRUCT else None

    def _offset_within(self, type_id: int, member: str) -> int | None:
        outer = self._type(type_id)
        for i in range(outer.members):
            name_at, member_type, bits = _MEMBER.unpack_from(self._raw, outer.at + _MEMBER.size * i)
            if outer.bit_fields:  # then the upper byte is the bit field's width
                if bits >> 24 and self._name(name_at) == member:
                    raise LookupError(f"{member} is a bit field")
                bits &= 0xFFFFFF
            if name_at and self._name(name_at) == member:
                return int(bits) // 8
            if not self._name(name_at) and self._type(member_type).kind in (_STRUCT, _UNION):
                inner = self._offset_within(member_type, member)
                if inner is not None:
                    return int(bits) // 8 + inner
        return None

    def _ids(self, kind: int, name: str) -> list[int]:
        wanted = b"\0" + name.encode() + b"\0"
        found: list[int] = []
        at = self._names.find(wanted)
        while at >= 0:
            found += self._named.get((kind, at + 1), [])
            at = self._names.find(wanted, at + 1)
        if not found:
            raise LookupError(f"the kernel's BTF has no {name}")
        return found

    def _type(self, type_id: int) -> BtfType:
        if not 0 < type_id < len(self._positions):
            raise LookupError(f"the kernel's BTF has no type {type_id}")
        at = self._positions[type_id]
        name_at, info, of = _TYPE.unpack_from(self._raw, at)
        return BtfType(info >> 24 & 31, name_at, info & 0xFFFF, bool(info >> 31), of, at + _TYPE.size)

    def _name(self, at: int) -> str:
        return self._names[at : self._names.index(b"\0", at)].decode()
