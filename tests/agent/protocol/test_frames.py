import random

import pytest
import zstandard
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from agent.protocol.digests import ZERO_DIGEST, block_digest
from agent.protocol.errors import BadFrame, DigestMismatch, ProtocolError
from agent.protocol.frames import (
    HEADER_BYTES,
    MAX_PLAIN_BYTES,
    Codec,
    Kind,
    decode,
    decode_single,
    encode_blocks,
    encode_offer,
    encode_zeros,
    frame_bytes,
    head_bytes,
)
from agent.protocol.grid import BlockGrid

GRID = BlockGrid(20 * 4096 + 512, 4096)


@st.composite
def blocks(draw: st.DrawFn) -> tuple[list[int], list[bytes]]:
    indices = sorted(draw(st.sets(st.integers(0, GRID.count - 1), min_size=1)))
    rng = random.Random(draw(st.integers(0, 1000)))
    kinds = [lambda n: bytes(n), lambda n: b"ab" * (n // 2), rng.randbytes]
    return indices, [rng.choice(kinds)(GRID.length(index)) for index in indices]


def digests_of(contents: list[bytes]) -> bytes:
    return b"".join(map(block_digest, contents))


@given(blocks(), st.integers(0, 3))
def test_blocks_arrive_as_they_were_sent(sent: tuple[list[int], list[bytes]], level: int) -> None:
    indices, contents = sent
    frame = decode_single(encode_blocks(indices, digests_of(contents), contents, level), Kind.BLOCKS)
    assert list(frame.indices) == indices
    assert bytes(frame.verified(GRID)) == b"".join(contents)


@given(blocks())
def test_frames_that_follow_one_another_are_all_found(sent: tuple[list[int], list[bytes]]) -> None:
    indices, contents = sent
    body = (
        encode_offer(indices, digests_of(contents))
        + encode_zeros(indices)
        + encode_blocks(indices, digests_of(contents), contents)
    )
    assert [frame.kind for frame in decode(body)] == [Kind.OFFER, Kind.ZEROS, Kind.BLOCKS]
    assert frame_bytes(body[:HEADER_BYTES]) == head_bytes(len(indices))


@given(blocks(), st.data())
def test_a_frame_cut_anywhere_is_refused(sent: tuple[list[int], list[bytes]], data: st.DataObject) -> None:
    indices, contents = sent
    body = encode_blocks(indices, digests_of(contents), contents)
    cut = data.draw(st.integers(1, len(body) - 1))
    with pytest.raises(BadFrame):
        list(decode(body[:cut]))


@given(blocks(), st.data())
def test_no_flipped_bit_gets_through(sent: tuple[list[int], list[bytes]], data: st.DataObject) -> None:
    indices, contents = sent
    body = bytearray(encode_blocks(indices, digests_of(contents), contents))
    at = data.draw(st.integers(0, len(body) - 1))
    body[at] ^= 1 << data.draw(st.integers(0, 7))
    try:
        plain = bytes(decode_single(body, Kind.BLOCKS).verified(GRID))
    except (BadFrame, DigestMismatch):
        return
    # zstd has bits without meaning; what matters is that what comes out is what went in
    assert plain == b"".join(contents)


@given(st.binary(max_size=300))
def test_arbitrary_bytes_give_a_protocol_error_and_nothing_else(body: bytes) -> None:
    for start in (b"", b"USF1"):
        try:
            for frame in decode(start + body):
                frame.verified(GRID)
        except ProtocolError:
            pass


def test_content_that_does_not_have_its_digest_is_refused() -> None:
    body = encode_blocks([3], block_digest(b"a" * 4096), [b"b" * 4096])
    with pytest.raises(DigestMismatch, match="block 3"):
        decode_single(body, Kind.BLOCKS).verified(GRID)


def test_an_index_outside_the_volume_is_refused() -> None:
    with pytest.raises(BadFrame, match="outside"):
        decode_single(encode_offer([GRID.count], ZERO_DIGEST), Kind.OFFER).check_against(GRID)


def test_a_payload_of_the_wrong_length_for_its_blocks_is_refused() -> None:
    frame = decode_single(encode_blocks([20], block_digest(b"a" * 4096), [b"a" * 4096]), Kind.BLOCKS)
    with pytest.raises(BadFrame, match="cannot hold"):
        frame.verified(GRID)


@pytest.mark.parametrize("indices", [[1, 1], [2, 1]])
def test_indices_that_do_not_rise_are_refused(indices: list[int]) -> None:
    with pytest.raises(BadFrame, match="rise"):
        list(decode(encode_offer(indices, ZERO_DIGEST * 2)))


def forged(plain: int, payload: bytes) -> bytes:
    """A BLOCKS frame for one block whose head is whole, but lies about its payload."""
    head = b"USF1" + bytes([Kind.BLOCKS, Codec.ZSTD, 0, 0])
    head += (1).to_bytes(4, "little") + plain.to_bytes(4, "little") + len(payload).to_bytes(4, "little")
    head += (0).to_bytes(8, "little") + ZERO_DIGEST
    return head + blake3(head).digest() + payload


@pytest.mark.parametrize("stated", [True, False])
def test_a_decompression_bomb_is_refused_before_it_is_unpacked(stated: bool) -> None:
    bomb = zstandard.ZstdCompressor(write_content_size=stated).compress(bytes(256 << 20))
    with pytest.raises(BadFrame):
        decode_single(forged(1 << 16, bomb), Kind.BLOCKS).verified(BlockGrid(1 << 16))


def test_a_frame_larger_than_the_limit_is_refused_by_its_header() -> None:
    with pytest.raises(BadFrame, match="limit"):
        frame_bytes(forged(MAX_PLAIN_BYTES + 1, b"x")[:HEADER_BYTES])


def test_a_body_must_be_exactly_the_frame_that_is_expected() -> None:
    offer = encode_offer([0], ZERO_DIGEST)
    for body in (b"", offer + offer, encode_zeros([0])):
        with pytest.raises(BadFrame):
            decode_single(body, Kind.OFFER)
