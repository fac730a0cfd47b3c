"""Frames: how block digests and block contents travel, in both directions.

    magic     4 bytes  "USF1"
    kind      u8       1 OFFER (no payload), 2 BLOCKS, 3 ZEROS (no payload: these blocks are all zero),
                       4 UNTIL (no payload, one block: an answer covers what was offered before that block),
                       5 PATCHES (pages of blocks: pages.py)
    codec     u8       0 stored, 1 zstd (one frame over all blocks together)
    reserved  u16      0
    count     u32      how many blocks are named, at most 65,536
    plain     u32      bytes of payload when unpacked: the sum of the blocks' lengths
    packed    u32      bytes of payload as it travels
    indices   count x u64, strictly rising
    digests   count x 32 bytes
    seal      32 bytes BLAKE3 of all bytes before it
    payload   packed bytes

All integers are little-endian. The seal covers what the digests do not: a wrong index with the right content.
Several frames may follow one another in one body. Parsing never allocates more than the caller's limits.
"""

from __future__ import annotations

import enum
import itertools
import struct
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import zstandard
from blake3 import blake3

from agent.protocol.digests import DIGEST_BYTES, block_digest
from agent.protocol.errors import BadFrame, DigestMismatch
from agent.protocol.grid import BlockGrid

MAGIC = b"USF1"
MAX_BLOCKS = 65_536
MAX_PLAIN_BYTES = 8 << 20
_HEADER = struct.Struct("<4sBBHIII")
_SEAL_BYTES = 32
_WINDOW_LOG = 22


class Kind(enum.IntEnum):
    OFFER = 1
    BLOCKS = 2
    ZEROS = 3
    UNTIL = 4
    PATCHES = 5


class Codec(enum.IntEnum):
    STORED = 0
    ZSTD = 1


class Answer(enum.IntEnum):
    """What the receiver says of each block of an OFFER, one byte a block."""

    HAVE = 0
    LACKING = 1
    COPIED = 2
    """It was not in place, and was copied from elsewhere in the tenant: deduplicated."""
    DIFFERS = 3
    """Lacking, and the block that is in its place may be like it: the sums of its pages follow the answers."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One parsed frame. `payload` is still packed; `verified()` unpacks and proves it."""

    kind: Kind
    indices: tuple[int, ...]
    digests: bytes
    codec: Codec = Codec.STORED
    plain_bytes: int = 0
    payload: bytes | memoryview = b""

    def digest(self, position: int) -> bytes:
        """The digest of the block named at `position`."""
        return self.digests[position * DIGEST_BYTES : (position + 1) * DIGEST_BYTES]

    def check_against(self, grid: BlockGrid) -> None:
        """Raise BadFrame unless every index lies in the volume and the payload has the length they need."""
        if self.indices and self.indices[-1] >= grid.count:
            raise BadFrame(f"block {self.indices[-1]} lies outside a volume of {grid.count} blocks")
        if self.kind is Kind.BLOCKS:
            # only a volume's last block may be short, and it can only be named last
            whole = max(len(self.indices) - 1, 0) * grid.block_bytes
            expected = whole + (grid.length(self.indices[-1]) if self.indices else 0)
            if self.plain_bytes != expected:
                raise BadFrame(f"a payload of {self.plain_bytes} bytes cannot hold blocks of {expected} bytes")

    def verified(self, grid: BlockGrid) -> memoryview:
        """The unpacked payload, every block proven equal to its digest. Block number `position` begins at
        `position * grid.block_bytes`: only a volume's last block is short, and it can only be named last.

        Raises BadFrame when the payload does not unpack to what was announced, DigestMismatch when a block differs.
        """
        self.check_against(grid)
        plain = memoryview(self.unpacked())
        size = grid.block_bytes
        found = [block_digest(plain[at : at + size]) for at in range(0, len(plain), size)]
        if b"".join(found) != self.digests:
            wrong = next(at for at, digest in enumerate(found) if digest != self.digest(at))
            raise DigestMismatch(f"block {self.indices[wrong]} does not have the digest that was announced for it")
        return plain

    def unpacked(self) -> bytes | memoryview:
        """The payload as it was before packing; nothing is proven. Raises BadFrame."""
        if self.codec is Codec.STORED:
            return self.payload
        try:
            # A zstd frame states its own size and the library believes it, so compare before unpacking anything.
            if zstandard.frame_content_size(self.payload) != self.plain_bytes:
                raise BadFrame("the payload does not unpack to the announced size")
            plain = _decompressor().decompress(self.payload, max_output_size=self.plain_bytes, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise BadFrame(f"the payload does not unpack: {error}") from None
        if len(plain) != self.plain_bytes:
            raise BadFrame("the payload does not unpack to the announced size")
        return plain


def _head(kind: Kind, codec: Codec, indices: Sequence[int], digests: bytes, plain: int, packed: int) -> bytes:
    count = len(indices)
    if len(digests) != count * DIGEST_BYTES:
        raise ValueError(f"{count} blocks cannot have {len(digests)} bytes of digests")
    head = _HEADER.pack(MAGIC, kind, codec, 0, count, plain, packed) + struct.pack(f"<{count}Q", *indices) + digests
    return head + blake3(head).digest()


def encode_offer(indices: Sequence[int], digests: bytes) -> bytes:
    """An OFFER of digests for the blocks named; indices rise."""
    return _head(Kind.OFFER, Codec.STORED, indices, digests, 0, 0)


def encode_zeros(indices: Sequence[int]) -> bytes:
    """A ZEROS frame: the blocks named hold nothing but zeros."""
    return _head(Kind.ZEROS, Codec.STORED, indices, bytes(len(indices) * DIGEST_BYTES), 0, 0)


def encode_until(index: int) -> bytes:
    """An UNTIL frame: of what was offered, block `index` and those behind it are not answered yet."""
    return _head(Kind.UNTIL, Codec.STORED, (index,), bytes(DIGEST_BYTES), 0, 0)


def encode_blocks(indices: Sequence[int], digests: bytes, parts: Sequence[bytes | memoryview], level: int = 1) -> bytes:
    """A BLOCKS frame; packed with zstd at `level` where that makes it smaller, else stored as it is. `parts` are the
    blocks' contents in order, however they are cut."""
    return b"".join(blocks_frame(indices, digests, parts, level))


def blocks_frame(
    indices: Sequence[int], digests: bytes, parts: Sequence[bytes | memoryview], level: int = 1
) -> tuple[bytes, bytes | memoryview]:
    """The same as head and payload; the payload may be `parts[0]` itself."""
    return _packed(Kind.BLOCKS, indices, digests, parts[0] if len(parts) == 1 else b"".join(parts), level)


def patches_frame(
    indices: Sequence[int], digests: bytes, plain: bytes | memoryview, level: int = 1
) -> tuple[bytes, bytes | memoryview]:
    """A PATCHES frame as head and payload; pages.py knows what is in `plain`."""
    return _packed(Kind.PATCHES, indices, digests, plain, level)


def _packed(
    kind: Kind, indices: Sequence[int], digests: bytes, plain: bytes | memoryview, level: int
) -> tuple[bytes, bytes | memoryview]:
    packed = _compressor(level).compress(plain) if level else plain
    codec = Codec.ZSTD if len(packed) < len(plain) else Codec.STORED
    payload = packed if codec is Codec.ZSTD else plain
    return _head(kind, codec, indices, digests, len(plain), len(payload)), payload


_own = threading.local()


def _compressor(level: int) -> zstandard.ZstdCompressor:
    """This thread's compressor: to set one up costs as much as to pack some blocks."""
    compressors: dict[int, zstandard.ZstdCompressor] = _own.__dict__.setdefault("compressors", {})
    if level not in compressors:
        # Low levels look back less far than a request is long; to look back over all of it costs them nothing.
        parameters = zstandard.ZstdCompressionParameters.from_level(
            level, window_log=_WINDOW_LOG, write_content_size=True
        )
        compressors[level] = zstandard.ZstdCompressor(compression_params=parameters)
    return compressors[level]


def _decompressor() -> zstandard.ZstdDecompressor:
    """The same for unpacking."""
    decompressor: zstandard.ZstdDecompressor | None = getattr(_own, "decompressor", None)
    if decompressor is None:
        decompressor = _own.decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_PLAIN_BYTES)
    return decompressor


def head_bytes(count: int) -> int:
    """How long everything before the payload is in a frame that names `count` blocks."""
    return _HEADER.size + count * (8 + DIGEST_BYTES) + _SEAL_BYTES


def decode(body: bytes | bytearray | memoryview) -> Iterator[Frame]:
    """All frames of a body, in order. Raises BadFrame at the first byte that does not fit."""
    view = memoryview(body).toreadonly()
    while len(view):
        frame, used = _decode_one(view)
        yield frame
        view = view[used:]


def decode_single(body: bytes | bytearray | memoryview, kind: Kind) -> Frame:
    """The one frame, of the kind expected, that a body holds. Raises BadFrame otherwise."""
    frames = decode(body)
    frame = next(frames, None)
    if frame is None or frame.kind is not kind or next(frames, None) is not None:
        raise BadFrame(f"the body is not exactly one {kind.name} frame")
    return frame


def frame_bytes(header: bytes | bytearray | memoryview) -> int:
    """How long the frame is whose first 20 bytes are `header`: for readers of a stream. Raises BadFrame."""
    if len(header) < _HEADER.size:
        raise BadFrame("the frame ends within its header")
    magic, kind, codec, reserved, count, plain, packed = _HEADER.unpack_from(header)
    if magic != MAGIC:
        raise BadFrame("the frame does not begin as one of ours")
    if kind not in Kind.__members__.values() or codec not in Codec.__members__.values() or reserved:
        raise BadFrame(f"a frame of kind {kind}, codec {codec} is unknown")
    if count > MAX_BLOCKS:
        raise BadFrame(f"a frame of {count} blocks is over the limit of {MAX_BLOCKS}")
    if plain > MAX_PLAIN_BYTES or packed > plain:
        raise BadFrame(f"a payload of {packed} bytes for {plain} is over the limit")
    if kind not in (Kind.BLOCKS, Kind.PATCHES) and (plain or codec):
        raise BadFrame("only BLOCKS and PATCHES have a payload")
    if codec == Codec.STORED and packed != plain:
        raise BadFrame("a stored payload has the wrong length")
    return head_bytes(count) + int(packed)


HEADER_BYTES = _HEADER.size


def _decode_one(view: memoryview) -> tuple[Frame, int]:
    total = frame_bytes(view[: _HEADER.size])
    if len(view) < total:
        raise BadFrame(f"the frame is cut short: {len(view)} of {total} bytes")
    _, kind, codec, _, count, plain, packed = _HEADER.unpack_from(view)
    head_end = total - packed
    sealed = head_end - _SEAL_BYTES
    if blake3(view[:sealed]).digest() != view[sealed:head_end]:
        raise BadFrame("the frame's head does not match its seal")
    at = _HEADER.size + 8 * count
    indices = struct.unpack(f"<{count}Q", view[_HEADER.size : at])
    if any(a >= b for a, b in itertools.pairwise(indices)):
        raise BadFrame("the frame's block indices do not rise")
    digests = bytes(view[at:sealed])
    return Frame(Kind(kind), indices, digests, Codec(codec), plain, view[head_end:total]), total
