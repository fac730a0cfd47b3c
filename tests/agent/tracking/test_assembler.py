import pytest

from agent.tracking.assembler import Alu, Assembler, Jump, Register


def test_instructions_have_the_bytes_that_the_kernel_documents() -> None:
    asm = Assembler()
    asm.alu(Alu.MOV, Register.R0, 7)
    asm.alu(Alu.ADD, Register.R1, Register.R2)
    asm.load(Register.R3, Register.R10, -8, 8)
    asm.store(Register.R10, -4, Register.R5, 4)
    asm.store(Register.R0, 0, 1, 1)
    asm.call(1)
    asm.exit()
    assert asm.assemble().hex(" ", 8) == (
        "b700000007000000 0f21000000000000 79a3f8ff00000000 635afcff00000000 7200000001000000 8500000001000000 "
        "9500000000000000"
    )


def test_a_64_bit_constant_takes_two_instructions() -> None:
    asm = Assembler()
    asm.constant(Register.R2, 0x1122334455667788)
    assert asm.assemble().hex(" ", 8) == "1802000088776655 0000000044332211"


def test_the_address_of_a_maps_value_and_an_atomic_addition_to_it() -> None:
    asm = Assembler()
    asm.map_value(Register.R2, 9, 64)
    asm.add_atomically(Register.R2, 8, Register.R1)
    assert asm.assemble().hex(" ", 8) == "1822000009000000 0000000040000000 db12080000000000"


def test_jumps_go_forward_and_back_to_their_labels() -> None:
    asm = Assembler()
    asm.label("begin")
    asm.jump_if(Jump.EQ, Register.R1, 0, "end")
    asm.jump("begin")
    asm.label("end")
    asm.exit()
    assert asm.assemble().hex(" ", 8) == "1501010000000000 0500feff00000000 9500000000000000"


def test_an_immediate_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bits"):
        Assembler().alu(Alu.MOV, Register.R1, 1 << 31)


def test_a_jump_to_a_label_that_is_nowhere_is_refused() -> None:
    asm = Assembler()
    asm.jump("nowhere")
    with pytest.raises(KeyError):
        asm.assemble()


def test_a_label_cannot_be_set_twice() -> None:
    asm = Assembler()
    asm.label("here")
    with pytest.raises(ValueError, match="here"):
        asm.label("here")
