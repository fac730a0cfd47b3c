import random

import pytest

from agent.tracking.changemap import (
    COARSE_SHIFT,
    FINE_SHIFT,
    LOST_AT,
    PAGE_BYTES,
    PASSTHROUGH_AT,
    Layout,
    drain,
    merge,
    within,
)

FINE, COARSE, GIB, TIB = 1 << FINE_SHIFT, 1 << COARSE_SHIFT, 1 << 30, 1 << 40


def memory_for(layout: Layout) -> bytearray:
    return bytearray(layout.pages * PAGE_BYTES)


@pytest.mark.parametrize("size", [512, FINE, FINE + 512, COARSE, COARSE + 512, 5 * GIB, 64 * TIB])
def test_levels_hold_the_whole_disk_and_do_not_overlap(size: int) -> None:
    layout = Layout(size)
    assert (layout.coarse_at - layout.fine_at) << FINE_SHIFT >= size
    assert (layout.end - layout.coarse_at) << COARSE_SHIFT >= size
    assert layout.pages * PAGE_BYTES >= layout.end
    assert layout.end < 1 << 31  # positions are immediates of BPF instructions


def test_an_untouched_map_has_no_changes() -> None:
    layout = Layout(GIB)
    marks = drain(memory_for(layout), layout)
    assert (marks.ranges, marks.lost, marks.passthrough) == ([], False, False)


def test_marks_of_both_levels_become_one_rising_list() -> None:
    layout = Layout(4 * COARSE + 512)
    memory = memory_for(layout)
    for fine in (0, 1, 5, 256, 4 * 256):
        memory[layout.fine_at + fine] = 1
    memory[layout.coarse_at + 2] = 1
    assert drain(memory, layout).ranges == [
        (0, 2 * FINE),
        (5 * FINE, FINE),
        (COARSE, FINE),
        (2 * COARSE, COARSE),
        (4 * COARSE, 512),
    ]


def test_flags_are_told_and_everything_is_empty_afterwards() -> None:
    layout = Layout(GIB)
    memory = memory_for(layout)
    memory[LOST_AT] = memory[PASSTHROUGH_AT] = 1
    memory[layout.fine_at + 77] = memory[layout.coarse_at + 3] = 1
    marks = drain(memory, layout)
    assert marks.lost
    assert marks.passthrough
    assert not any(memory)


def test_random_marks_come_back_block_for_block() -> None:
    rng = random.Random(2)
    layout = Layout(80 * GIB + 4096)  # more than one piece of the reader
    memory = memory_for(layout)
    marked = {rng.randrange(layout.coarse_at - layout.fine_at) for _ in range(2000)}
    marked |= set(range((1 << 20) - 3, (1 << 20) + 3))  # across the boundary of two pieces
    for block in marked:
        memory[layout.fine_at + block] = 1
    ranges = drain(memory, layout).ranges
    found = {block for offset, length in ranges for block in range(offset // FINE, -(-(offset + length) // FINE))}
    assert found == marked
    assert all(end < start for end, start in zip([o + n for o, n in ranges], [o for o, _ in ranges[1:]], strict=False))


def test_spans_that_overlap_or_touch_are_joined() -> None:
    assert merge([(0, 5), (5, 9), (7, 8), (12, 13)]) == [(0, 9), (12, 1)]


def test_a_partition_sees_its_own_coordinates_only() -> None:
    start, size = 2048 * 512, 10 * FINE + 512
    disk_ranges = [(0, FINE), (start - FINE, 2 * FINE), (start + 9 * FINE, 8 * FINE), (start + 20 * FINE, FINE)]
    assert within(disk_ranges, start, size, FINE) == [(0, FINE), (9 * FINE, FINE + 512)]


def test_a_partition_that_begins_within_a_block_rounds_outwards() -> None:
    start = 63 * 512  # as partitions of old began
    assert within([(FINE, FINE)], start, 1 << 30, FINE) == [(0, 2 * FINE)]
    assert within([(FINE, FINE)], start, 1 << 30, 4096) == [(32768, 69632)]


def test_larger_blocks_swallow_their_neighbours() -> None:
    assert within([(FINE, FINE), (20 * FINE, FINE)], 0, 1 << 30, 1 << 20) == [(0, 2 << 20)]


def test_each_changed_byte_of_a_partition_is_covered_whatever_the_offsets() -> None:
    rng = random.Random(3)
    for _ in range(300):
        start, size = rng.randrange(0, 4000) * 512, rng.randrange(1, 4000) * 512
        block = 4096 << rng.randrange(9)
        at, ranges = 0, []
        for _ in range(rng.randrange(6)):
            at += rng.randrange(1, 9) * FINE
            length = rng.randrange(1, 5) * FINE
            ranges.append((at, length))
            at += length
        covered = within(ranges, start, size, block)
        for offset, length in ranges:
            for sector in range(offset, offset + length, 4096 * 4):
                inside = sector - start
                if 0 <= inside < size:
                    assert any(o <= inside < o + n for o, n in covered)
        assert all(o % block == 0 and (n % block == 0 or o + n == size) for o, n in covered)
        assert all(o >= 0 and o + n <= size for o, n in covered)
