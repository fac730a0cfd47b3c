import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.protocol.errors import BadMessage
from agent.protocol.grid import MAX_VOLUME_BYTES, BlockGrid

sizes = st.integers(1, 1 << 14).map(lambda sectors: sectors * 512)
grains = st.sampled_from([4096, 8192, 65536, 1 << 20])


@given(sizes, grains)
def test_blocks_tile_the_volume_exactly(size_bytes: int, block_bytes: int) -> None:
    grid = BlockGrid(size_bytes, block_bytes)
    assert sum(grid.length(index) for index in range(grid.count)) == size_bytes
    assert all(grid.length(index) == block_bytes for index in range(grid.count - 1))
    assert 0 < grid.length(grid.count - 1) <= block_bytes


@given(sizes, grains, st.integers(1, 100))
def test_pieces_cover_every_block_once_in_order(size_bytes: int, block_bytes: int, most: int) -> None:
    grid = BlockGrid(size_bytes, block_bytes)
    assert [index for piece in grid.pieces(most) for index in piece] == list(range(grid.count))


@given(sizes, st.lists(st.tuples(st.integers(0, 1 << 23), st.integers(0, 1 << 20)), max_size=8), st.integers(1, 50))
def test_covering_names_exactly_the_blocks_touched(size_bytes: int, ranges: list[tuple[int, int]], most: int) -> None:
    grid = BlockGrid(size_bytes, 4096)
    expected = {
        index
        for index in range(grid.count)
        for offset, length in ranges
        if offset < grid.offset(index) + 4096 and offset + length > grid.offset(index) and length
    }
    covered = [index for piece in grid.covering(ranges, most) for index in piece]
    assert covered == sorted(expected)
    assert all(len(piece) <= most for piece in grid.covering(ranges, most))


def test_span_of_the_last_blocks_ends_with_the_volume() -> None:
    assert BlockGrid(4096 * 2 + 512, 4096).span(range(1, 3)) == (4096, 4096 + 512)


@pytest.mark.parametrize("size_bytes", [0, -512, 511, 513, MAX_VOLUME_BYTES + 512])
def test_a_size_that_no_volume_can_have_is_refused(size_bytes: int) -> None:
    with pytest.raises(BadMessage):
        BlockGrid(size_bytes, 65536)


@pytest.mark.parametrize("block_bytes", [0, 2048, 65537, 3 * 4096, 2 << 20])
def test_a_grain_that_is_no_power_of_two_in_range_is_refused(block_bytes: int) -> None:
    with pytest.raises(BadMessage):
        BlockGrid(1 << 20, block_bytes)


def test_more_blocks_than_a_digest_map_may_have_are_refused() -> None:
    BlockGrid(MAX_VOLUME_BYTES, 65536)
    with pytest.raises(BadMessage, match="larger blocks"):
        BlockGrid(MAX_VOLUME_BYTES, 32768)
