from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from agent.protocol.digests import ZERO_DIGEST, DigestMap, block_digest
from agent.protocol.grid import BlockGrid


@given(st.binary(min_size=1, max_size=9000))
def test_a_block_is_its_blake3_unless_it_is_all_zeros(block: bytes) -> None:
    expected = blake3(block).digest() if any(block) else ZERO_DIGEST
    assert block_digest(block) == expected
    assert block_digest(memoryview(bytearray(block))) == expected


def test_a_block_with_zeros_at_both_ends_only_is_not_taken_for_zeros() -> None:
    block = bytes(1000) + b"x" + bytes(1000)
    assert block_digest(block) == blake3(block).digest()


def test_the_root_is_the_documented_construction() -> None:
    grid = BlockGrid(1500 * 4096, 4096)
    digests = DigestMap(grid)
    digests[0], digests[1499] = b"a" * 32, b"b" * 32
    everything = digests.run(range(1500))
    segments = [
        blake3(everything[at : at + 1024 * 32], derive_key_context="understudy 2026 segment v1").digest()
        for at in (0, 1024 * 32)
    ]
    header = (1500 * 4096).to_bytes(8, "little") + (4096).to_bytes(4, "little")
    expected = blake3(header + b"".join(segments), derive_key_context="understudy 2026 root v1").digest()
    assert digests.root() == expected


def test_the_root_of_a_known_volume_never_changes() -> None:
    """Points are kept for years: a root computed today must be what it was when the point was signed."""
    digests = DigestMap(BlockGrid(3 * 65536 + 512))
    digests[0] = block_digest(b"\x01" * 65536)
    digests[3] = block_digest(b"\x02" * 512)
    assert digests.root().hex() == "ff5ca0d88ac01da093f23b90456507a779078e1e08ccad625e79e83107f53c00"


@given(st.integers(1, 3000), st.data())
def test_changing_any_digest_changes_the_root(count: int, data: st.DataObject) -> None:
    digests = DigestMap(BlockGrid(count * 4096, 4096))
    before = digests.root()
    digests[data.draw(st.integers(0, count - 1))] = b"x" * 32
    assert digests.root() != before


def test_size_and_grain_are_part_of_the_root() -> None:
    roots = {DigestMap(BlockGrid(size, grain)).root() for size in (65536, 65024) for grain in (32768, 65536)}
    assert len(roots) == 4


def test_a_mapped_map_keeps_its_digests_and_grows_with_zeros(tmp_path: Path) -> None:
    path = tmp_path / "digests"
    digests = DigestMap.open(path, BlockGrid(65536))
    digests[0] = b"d" * 32
    digests.flush()
    digests.close()
    grown = DigestMap.open(path, BlockGrid(3 * 65536))
    assert grown.run(range(3)) == b"d" * 32 + ZERO_DIGEST * 2
    grown.close()


def test_an_index_outside_the_volume_is_refused() -> None:
    digests = DigestMap(BlockGrid(65536))
    for index in (-1, 1):
        with pytest.raises(IndexError):
            digests[index]
        with pytest.raises(IndexError):
            digests[index] = ZERO_DIGEST
    with pytest.raises(IndexError):
        digests.set_run(range(1, 2), ZERO_DIGEST)
