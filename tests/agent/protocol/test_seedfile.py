"""Every byte of a seed file is covered: by a seal, a digest or the root."""

from __future__ import annotations

import io
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.protocol.digests import DigestMap, block_digest
from agent.protocol.errors import ProtocolError
from agent.protocol.frames import encode_blocks
from agent.protocol.grid import BlockGrid
from agent.protocol.messages import VolumeDeclaration
from agent.protocol.seedfile import SeedHeader, SeedReader, SeedWriter

GRID = BlockGrid(10 * 4096 + 512, 4096)
HEADER = SeedHeader(
    server_id="srv-1",
    server_name="web01",
    ca_fingerprint="f",
    machine_id="m",
    made_at="2026-11-20T00:00:00+00:00",
    volumes=[VolumeDeclaration(path="/dev/sda", size_bytes=GRID.size_bytes, block_bytes=GRID.block_bytes)] * 2,
)


def blocks(seed: int, indices: list[int], level: int = 1) -> bytes:
    rng = random.Random(seed)
    contents = [rng.randbytes(8) * (GRID.length(index) // 8) for index in indices]
    return bytes(encode_blocks(indices, b"".join(map(block_digest, contents)), contents, level))


def written() -> bytes:
    file = io.BytesIO()
    writer = SeedWriter(file, HEADER)
    writer.add(0, blocks(1, [0, 1, 5]))
    writer.add(0, blocks(2, [7, 10], level=0))
    writer.add(1, blocks(3, [3]))
    writer.end(["a", "b"])
    return file.getvalue()


SEED = written()


def taken_in(content: bytes) -> list[bytes]:
    """Both volumes' digest maps, every block proven as a receiver does. Raises ProtocolError."""
    reader = SeedReader(io.BytesIO(content))
    maps = [DigestMap(grid) for grid in reader.grids]
    for record in reader.records():
        record.frame.verified(reader.grids[record.volume])
        for position, index in enumerate(record.frame.indices):
            maps[record.volume][index] = record.frame.digest(position)
    assert reader.trailer is not None
    assert reader.trailer.roots == ["a", "b"]
    return [digests.root() for digests in maps]


def test_what_was_written_is_read_back() -> None:
    reader = SeedReader(io.BytesIO(SEED))
    assert reader.header == HEADER
    assert [(record.volume, record.frame.indices) for record in reader.records()] == [
        (0, (0, 1, 5)),
        (0, (7, 10)),
        (1, (3,)),
    ]


@given(at=st.integers(0, len(SEED) - 1), bit=st.integers(0, 7))
def test_any_flipped_bit_is_noticed(at: int, bit: int) -> None:
    bad = bytearray(SEED)
    bad[at] ^= 1 << bit
    with pytest.raises(ProtocolError):
        taken_in(bytes(bad))


@given(kept=st.integers(0, len(SEED) - 1))
def test_a_file_that_ends_early_is_noticed_wherever_it_ends(kept: int) -> None:
    with pytest.raises(ProtocolError, match="cut short"):
        taken_in(SEED[:kept])


def test_a_file_that_goes_on_after_its_end_is_refused() -> None:
    with pytest.raises(ProtocolError, match="end does not fit"):
        taken_in(SEED + b"\0")


def test_what_is_something_else_is_told_from_a_damaged_seed() -> None:
    with pytest.raises(ProtocolError, match="no seed file"):
        taken_in(b"#!/bin/sh\necho this is a script\n")


@pytest.mark.parametrize(("volume", "indices"), [(2, [0]), (0, [5, 9]), (0, [])])
def test_a_record_that_does_not_belong_there_is_refused_even_if_sealed(volume: int, indices: list[int]) -> None:
    file = io.BytesIO()
    writer = SeedWriter(file, HEADER)
    writer.add(0, blocks(1, [0, 1, 5]))
    writer.add(volume, blocks(2, indices))
    writer.end(["a", "b"])
    with pytest.raises(ProtocolError, match="does not belong"):
        taken_in(file.getvalue())
