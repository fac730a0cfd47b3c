"""A BPF assembler for as much of the instruction set as one program needs: 64-bit arithmetic, loads, stores, jumps.

Every instruction has 8 bytes: opcode u8, destination and source register 4 bits each, jump or address offset i16,
immediate i32; a 64-bit constant takes two.
"""

from __future__ import annotations

import enum
import struct


class Register(enum.IntEnum):
    """R0 holds results, R1 to R5 arguments (lost in a call), R6 to R9 survive calls, R10 is the top of the stack."""

    R0 = 0
    R1 = 1
    R2 = 2
    R3 = 3
    R4 = 4
    R5 = 5
    R6 = 6
    R7 = 7
    R8 = 8
    R9 = 9
    R10 = 10


class Alu(enum.IntEnum):
    ADD = 0x00
    AND = 0x50
    LSH = 0x60
    RSH = 0x70
    XOR = 0xA0
    MOV = 0xB0


class Jump(enum.IntEnum):
    """Unsigned comparisons of the whole register; SET is `register & value != 0`."""

    ALWAYS = 0x00
    EQ = 0x10
    GT = 0x20
    GE = 0x30
    SET = 0x40
    NE = 0x50


_ALU64, _JMP, _REGISTER_OPERAND = 0x07, 0x05, 0x08
_LDX, _ST, _STX = 0x61, 0x62, 0x63
_SIZES = {4: 0x00, 2: 0x08, 1: 0x10, 8: 0x18}
_ATOMIC_ADD_8 = 0xDB
_LOAD_CONSTANT, _CALL, _EXIT = 0x18, 0x85, 0x95
_MAP_BY_DESCRIPTOR, _VALUE_BY_DESCRIPTOR = 1, 2


class Assembler:
    """Collects instructions; jumps name labels, which may come later."""

    def __init__(self) -> None:
        self._code: list[tuple[int, int, int, int, int]] = []
        self._labels: dict[str, int] = {}
        self._jumps: dict[int, str] = {}

    def _emit(self, opcode: int, destination: int = 0, source: int = 0, offset: int = 0, immediate: int = 0) -> None:
        if not -(1 << 31) <= immediate < 1 << 31:
            raise ValueError(f"{immediate} does not fit an immediate of 32 bits")
        self._code.append((opcode, destination, source, offset, immediate))

    def _operand(self, opcode: int, destination: int, operand: Register | int) -> None:
        if isinstance(operand, Register):
            self._emit(opcode | _REGISTER_OPERAND, destination, operand)
        else:
            self._emit(opcode, destination, immediate=operand)

    def alu(self, operation: Alu, destination: Register, operand: Register | int) -> None:
        """destination = destination (operation) operand"""
        self._operand(_ALU64 | operation, destination, operand)

    def constant(self, destination: Register, value: int) -> None:
        """destination = any 64-bit value"""
        self._two_words(destination, 0, value)

    def map(self, destination: Register, descriptor: int) -> None:
        """destination = the map behind a file descriptor"""
        self._two_words(destination, _MAP_BY_DESCRIPTOR, descriptor)

    def map_value(self, destination: Register, descriptor: int, offset: int) -> None:
        """destination = the address of a byte in the first value of an array map"""
        self._two_words(destination, _VALUE_BY_DESCRIPTOR, offset << 32 | descriptor)

    def _two_words(self, destination: Register, source: int, value: int) -> None:
        low, high = struct.unpack("<ii", struct.pack("<Q", value))
        self._emit(_LOAD_CONSTANT, destination, source, immediate=low)
        self._emit(0, immediate=high)

    def load(self, destination: Register, base: Register, offset: int, size_bytes: int) -> None:
        """destination = the unsigned value at base + offset"""
        self._emit(_LDX | _SIZES[size_bytes], destination, base, offset)

    def store(self, base: Register, offset: int, value: Register | int, size_bytes: int) -> None:
        """the memory at base + offset = value"""
        if isinstance(value, Register):
            self._emit(_STX | _SIZES[size_bytes], base, value, offset)
        else:
            self._emit(_ST | _SIZES[size_bytes], base, 0, offset, value)

    def add_atomically(self, base: Register, offset: int, value: Register) -> None:
        """the 8 bytes of memory at base + offset += value"""
        self._emit(_ATOMIC_ADD_8, base, value, offset)

    def jump(self, label: str) -> None:
        self._jumps[len(self._code)] = label
        self._emit(_JMP | Jump.ALWAYS)

    def jump_if(self, condition: Jump, register: Register, operand: Register | int, label: str) -> None:
        self._jumps[len(self._code)] = label
        self._operand(_JMP | condition, register, operand)

    def label(self, name: str) -> None:
        """The next instruction is where jumps to `name` go."""
        if name in self._labels:
            raise ValueError(f"label {name} is there already")
        self._labels[name] = len(self._code)

    def call(self, helper: int) -> None:
        self._emit(_CALL, immediate=helper)

    def exit(self) -> None:
        self._emit(_EXIT)

    def assemble(self) -> bytes:
        """The machine code. Raises KeyError for a label that was never set."""
        code = bytearray()
        for at, (opcode, destination, source, offset, immediate) in enumerate(self._code):
            distance = self._labels[self._jumps[at]] - at - 1 if at in self._jumps else offset
            code += struct.pack("<BBhi", opcode, source << 4 | destination, distance, immediate)
        return bytes(code)
