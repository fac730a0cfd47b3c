"""The BPF program: at each completed request that may have changed the disk, mark its range in the change map.

It runs at block_rq_complete, which fires after the medium changed and before whoever wrote is told. Marking any
earlier (when a request is queued or issued) loses writes that are under way while maps are exchanged.
"""

from __future__ import annotations

from dataclasses import dataclass

from agent.tracking.assembler import Alu, Assembler, Jump, Register
from agent.tracking.btf import Btf
from agent.tracking.changemap import (
    COARSE_SHIFT,
    FINE_LIMIT_BYTES,
    FINE_SHIFT,
    LOST_AT,
    PAGE_BYTES,
    PASSTHROUGH_AT,
    Layout,
)

TRACEPOINT = "block_rq_complete"
MAX_DISCARD_SEGMENTS = 256  # the most that Linux's drivers allow; a request with more is doubt

_MAP_LOOKUP, _PROBE_READ_KERNEL = 1, 113  # numbers of BPF helpers
_OP_MASK, _OP_CHANGES_MEDIUM, _OP_DISCARD, _OP_FIRST_PASSTHROUGH = 0xFF, 1, 3, 32

# Stack slots, below R10.
_SCRATCH, _INNER, _NEXT_BIO, _SHIFT, _BASE, _KEY = -8, -16, -24, -32, -40, -48

R0, R1, R2, R3 = Register.R0, Register.R1, Register.R2, Register.R3
R6, R7, R8, R9, R10 = Register.R6, Register.R7, Register.R8, Register.R9, Register.R10


@dataclass(frozen=True, slots=True, kw_only=True)
class Offsets:
    """Byte offsets of what the program reads. `request_disk` is None from 5.17 on: then the way is by the queue."""

    request_flags: int
    request_sector: int
    request_bio: int
    request_disk: int | None
    request_queue: int
    queue_disk: int | None
    disk_major: int
    disk_minor: int
    bio_next: int
    bio_sector: int
    bio_bytes: int

    @classmethod
    def of(cls, btf: Btf) -> Offsets:
        """Raises LookupError if this kernel's structures or its tracepoint are not as the program expects them."""
        # (hidden, rq, error, nr_bytes): the function behind a tracepoint has one parameter before the tracepoint's own.
        if btf.parameters(f"btf_trace_{TRACEPOINT}") != [None, "request", None, None]:
            raise LookupError(f"{TRACEPOINT} has other parameters on this kernel")

        def needed(struct_name: str, member: str) -> int:
            offset = btf.member_offset(struct_name, member)
            if offset is None:
                raise LookupError(f"the kernel's structure {struct_name} has no {member}")
            return offset

        iterator = needed("bio", "bi_iter")
        request_disk = btf.member_offset("request", "rq_disk")
        return cls(
            request_flags=needed("request", "cmd_flags"),
            request_sector=needed("request", "__sector"),
            request_bio=needed("request", "bio"),
            request_disk=request_disk,
            request_queue=needed("request", "q"),
            queue_disk=needed("request_queue", "disk") if request_disk is None else None,
            disk_major=needed("gendisk", "major"),
            disk_minor=needed("gendisk", "first_minor"),
            bio_next=needed("bio", "bi_next"),
            bio_sector=iterator + needed("bvec_iter", "bi_sector"),
            bio_bytes=iterator + needed("bvec_iter", "bi_size"),
        )


def change_program(
    offsets: Offsets,
    major: int,
    minor: int,
    layout: Layout,
    *,
    discard_segments: int,
    slot_map: int,
    counter_map: int,
    counter_at: int,
) -> bytes:
    """Machine code that marks what changes on disk major:minor in whatever map is in `slot_map`.

    It adds the sectors of each such request to the counter (u64) at byte `counter_at` of `counter_map`.

    Where `discard_segments` (the disk's queue/max_discard_segments) is more than 1, a discard request holds scattered
    ranges, one in each bio, and its own range means nothing. Elsewhere bios are not walked: any number may be merged.
    """
    asm = Assembler()
    walks = discard_segments > 1

    def probe(destination: Register, base: Register, offset: int, size_bytes: int) -> None:
        """destination = kernel memory at base + offset; a failed read is doubt."""
        asm.alu(Alu.MOV, R1, R10)
        asm.alu(Alu.ADD, R1, _SCRATCH)
        asm.alu(Alu.MOV, R2, size_bytes)
        asm.alu(Alu.MOV, R3, base)
        asm.alu(Alu.ADD, R3, offset)
        asm.call(_PROBE_READ_KERNEL)
        asm.jump_if(Jump.NE, R0, 0, "lost")
        asm.load(destination, R10, _SCRATCH, size_bytes)

    def look_up() -> None:
        """R0 = the value of the map in R1 for the key in its slot; ends the program if there is none."""
        asm.alu(Alu.MOV, R2, R10)
        asm.alu(Alu.ADD, R2, _KEY)
        asm.call(_MAP_LOOKUP)
        asm.jump_if(Jump.EQ, R0, 0, "out")

    def look_up_inner() -> None:
        asm.store(R10, _KEY, 0, 4)
        asm.map(R1, slot_map)
        look_up()

    # R6 request, R8 bytes. Which operation, and is it our disk? Operations that change the medium are odd.
    asm.load(R6, R1, 0, 8)
    asm.load(R8, R1, 16, 8)
    asm.alu(Alu.LSH, R8, 32)
    asm.alu(Alu.RSH, R8, 32)
    probe(R7, R6, offsets.request_flags, 4)
    asm.alu(Alu.AND, R7, _OP_MASK)
    asm.jump_if(Jump.SET, R7, _OP_CHANGES_MEDIUM, "changes")
    asm.jump("out")
    asm.label("changes")
    if offsets.request_disk is not None:
        probe(R9, R6, offsets.request_disk, 8)
    else:
        assert offsets.queue_disk is not None
        probe(R9, R6, offsets.request_queue, 8)
        probe(R9, R9, offsets.queue_disk, 8)
    asm.jump_if(Jump.EQ, R9, 0, "out")
    probe(R1, R9, offsets.disk_major, 4)
    asm.jump_if(Jump.NE, R1, major, "out")
    probe(R1, R9, offsets.disk_minor, 4)
    asm.jump_if(Jump.NE, R1, minor, "out")
    asm.jump_if(Jump.GE, R7, _OP_FIRST_PASSTHROUGH, "passthrough")
    asm.jump_if(Jump.EQ, R8, 0, "out")
    asm.alu(Alu.MOV, R1, R8)
    asm.alu(Alu.RSH, R1, 9)
    asm.map_value(R2, counter_map, counter_at)
    asm.add_atomically(R2, 0, R1)
    look_up_inner()
    asm.store(R10, _INNER, R0, 8)

    # Which level: by the whole request, so that the marks of all its ranges together are bounded too.
    asm.store(R10, _SHIFT, FINE_SHIFT, 8)
    asm.store(R10, _BASE, layout.fine_at, 8)
    asm.jump_if(Jump.GT, R8, FINE_LIMIT_BYTES, "long")
    asm.jump("level")
    asm.label("long")
    asm.store(R10, _SHIFT, COARSE_SHIFT, 8)
    asm.store(R10, _BASE, layout.coarse_at, 8)
    asm.label("level")
    # Each range touches at most 2 marks more than its share of 256, and takes one more turn to go on to the next.
    asm.alu(Alu.MOV, R9, (1 << 32 - COARSE_SHIFT) + 3 * min(discard_segments, MAX_DISCARD_SEGMENTS) + 2)
    asm.store(R10, _NEXT_BIO, 0, 8)
    if walks:
        asm.jump_if(Jump.EQ, R7, _OP_DISCARD, "discard")
    probe(R7, R6, offsets.request_sector, 8)

    # R7 first sector, R8 bytes: become positions of the first and the last mark.
    asm.label("range")
    asm.constant(R2, layout.size_bytes >> 9)
    asm.jump_if(Jump.GE, R7, R2, "lost")
    asm.alu(Alu.LSH, R7, 9)
    asm.alu(Alu.ADD, R8, R7)
    asm.alu(Alu.ADD, R8, -1)
    asm.alu(Alu.MOV, R1, R8)
    asm.alu(Alu.RSH, R1, 9)
    asm.jump_if(Jump.GE, R1, R2, "lost")
    asm.load(R1, R10, _SHIFT, 8)
    asm.load(R2, R10, _BASE, 8)
    for position in (R7, R8):
        asm.alu(Alu.RSH, position, R1)
        asm.alu(Alu.ADD, position, R2)
        # Twice the same: changes nothing, but the verifier forgets what it knew of the value. Otherwise it would
        # take each turn of the loop for a new case, and walking a chain of bios would cost turns times turns.
        asm.alu(Alu.XOR, position, R6)
        asm.alu(Alu.XOR, position, R6)

    # R7 position, R8 last position, R9 turns left.
    asm.label("mark")
    asm.alu(Alu.ADD, R9, -1)
    asm.jump_if(Jump.EQ, R9, 0, "lost")
    asm.jump_if(Jump.GT, R7, R8, "next")
    asm.alu(Alu.MOV, R1, R7)
    asm.alu(Alu.RSH, R1, PAGE_BYTES.bit_length() - 1)
    asm.store(R10, _KEY, R1, 4)
    asm.load(R1, R10, _INNER, 8)
    look_up()
    asm.alu(Alu.MOV, R1, R7)
    asm.alu(Alu.AND, R1, PAGE_BYTES - 1)
    asm.alu(Alu.ADD, R0, R1)
    asm.store(R0, 0, 1, 1)
    asm.alu(Alu.ADD, R7, 1)
    asm.jump("mark")

    asm.label("next")
    if walks:
        asm.load(R6, R10, _NEXT_BIO, 8)
        asm.jump_if(Jump.EQ, R6, 0, "out")
        probe(R7, R6, offsets.bio_next, 8)
        asm.store(R10, _NEXT_BIO, R7, 8)
        probe(R7, R6, offsets.bio_sector, 8)
        probe(R8, R6, offsets.bio_bytes, 4)
        asm.jump_if(Jump.NE, R8, 0, "range")
        asm.jump("nothing")
    asm.label("out")
    asm.alu(Alu.MOV, R0, 0)
    asm.exit()
    if walks:
        asm.label("discard")
        probe(R7, R6, offsets.request_bio, 8)
        asm.store(R10, _NEXT_BIO, R7, 8)
        asm.label("nothing")
        asm.alu(Alu.MOV, R7, 1)
        asm.alu(Alu.MOV, R8, 0)
        asm.jump("mark")

    asm.label("lost")
    asm.alu(Alu.MOV, R7, LOST_AT)
    asm.jump("flag")
    asm.label("passthrough")
    asm.alu(Alu.MOV, R7, PASSTHROUGH_AT)
    asm.label("flag")
    look_up_inner()
    asm.alu(Alu.MOV, R1, R0)
    look_up()
    asm.alu(Alu.ADD, R0, R7)
    asm.store(R0, 0, 1, 1)
    asm.jump("out")
    return asm.assemble()
