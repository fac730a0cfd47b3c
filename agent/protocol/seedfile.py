"""The seed file: the initial content of a server's volumes, carried on a disk instead of sent over the line.

    magic     8 bytes  "USSEED1\\n"
    length    u32      of the header
    header    JSON     SeedHeader
    seal      32 bytes BLAKE3 of all bytes before it
    records, each      volume u32, then one BLOCKS frame; a volume's blocks rise; a block that no frame names is zero
    marker    u32      0xffffffff
    length    u32      of the trailer
    trailer   JSON     SeedTrailer
    seal      32 bytes BLAKE3 of all bytes before it, from the first on

All integers are little-endian. A file without its trailer was not written to its end. The content lies open, as it
does on the disk that it comes from: whoever carries it encrypts it (age, gpg, LUKS).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, TypeVar

from blake3 import blake3

from agent.protocol.errors import BadFrame, BadMessage
from agent.protocol.frames import HEADER_BYTES, Frame, Kind, decode_single, frame_bytes
from agent.protocol.grid import BlockGrid
from agent.protocol.messages import MAX_JSON_BYTES, MAX_VOLUMES, VolumeDeclaration, from_json, to_json

MAGIC = b"USSEED1\n"
_U32 = struct.Struct("<I")
_END = 0xFFFF_FFFF
_SEAL_BYTES = 32
_HINT = "copy it again, or write it anew: understudy-agent seed --onto FILE; nothing was harmed"

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedHeader:
    """Whose content it is. `ca_fingerprint` tells the service; `made_at` is ISO 8601 by the server's clock."""

    server_id: str
    server_name: str
    ca_fingerprint: str
    machine_id: str
    made_at: str
    volumes: list[VolumeDeclaration]


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedTrailer:
    """`roots` are hex, one a volume: what each holds once all frames were taken in."""

    roots: list[str]
    frames: int


class SeedWriter:
    """Raises OSError as the file does."""

    def __init__(self, file: BinaryIO, header: SeedHeader) -> None:
        self._file = file
        self._seal = blake3()
        self._frames = 0
        document = json.dumps(to_json(header)).encode()
        self._write(MAGIC + _U32.pack(len(document)) + document)
        self._write(self._seal.digest())

    def add(self, volume: int, frame: bytes) -> None:
        self._write(_U32.pack(volume))
        self._write(frame)
        self._frames += 1

    def end(self, roots: list[str]) -> None:
        """From here on the file is whole."""
        document = json.dumps(to_json(SeedTrailer(roots=roots, frames=self._frames))).encode()
        self._write(_U32.pack(_END) + _U32.pack(len(document)) + document)
        self._write(self._seal.digest())

    def _write(self, data: bytes) -> None:
        self._seal.update(data)
        self._file.write(data)


@dataclass(frozen=True, slots=True)
class SeedRecord:
    """One frame: as it lies in the file, and parsed."""

    volume: int
    body: bytes
    frame: Frame


class SeedReader:
    """Reads front to back, a record at a time. Everything raises BadFrame or BadMessage for what is no whole seed
    file; OSError as the file does."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._seal = blake3()
        self.read_bytes = 0
        if self._read(len(MAGIC), "its first bytes") != MAGIC:
            raise BadFrame("this is no seed file", "seed files are written by: understudy-agent seed --onto FILE")
        self.header = self._document(SeedHeader, "its header")
        if not 0 < len(self.header.volumes) <= MAX_VOLUMES:
            raise BadFrame(f"the seed file names {len(self.header.volumes)} volumes", _HINT)
        self.grids = [BlockGrid(volume.size_bytes, volume.block_bytes) for volume in self.header.volumes]
        self._frames = 0
        self._next_blocks = [0] * len(self.grids)
        self.trailer: SeedTrailer | None = None
        """There once `records` has come to its end."""

    def records(self) -> Iterator[SeedRecord]:
        """All frames in order; the blocks' digests are for the receiver to check, all else is checked here."""
        while (volume := self._number("the next record")) != _END:
            head = self._read(HEADER_BYTES, "a frame's head")
            body = head + self._read(frame_bytes(head) - HEADER_BYTES, "a frame")
            frame = decode_single(body, Kind.BLOCKS)
            if volume >= len(self.grids) or not frame.indices or frame.indices[0] < self._next_blocks[volume]:
                raise BadFrame("a record of the seed file stands where it does not belong", _HINT)
            frame.check_against(self.grids[volume])
            self._next_blocks[volume] = frame.indices[-1] + 1
            self._frames += 1
            yield SeedRecord(volume, body, frame)
        trailer = self._document(SeedTrailer, "its trailer")
        if trailer.frames != self._frames or len(trailer.roots) != len(self.grids) or self._file.read(1):
            raise BadFrame("the seed file's end does not fit what is before it", _HINT)
        self.trailer = trailer

    def _document(self, cls: type[T], what: str) -> T:
        length = self._number(what)
        if length > MAX_JSON_BYTES:
            raise BadFrame(f"the seed file is damaged in {what}", _HINT)
        content = self._read(length, what)
        expected = self._seal.digest()
        if self._read(_SEAL_BYTES, what) != expected:
            raise BadFrame(f"the seed file was altered before the end of {what}", _HINT)
        try:
            return from_json(cls, json.loads(content))
        except (ValueError, RecursionError):
            raise BadMessage(f"the seed file is damaged in {what}", _HINT) from None

    def _number(self, what: str) -> int:
        (number,) = _U32.unpack(self._read(_U32.size, what))
        return int(number)

    def _read(self, length: int, what: str) -> bytes:
        data = self._file.read(length)
        if len(data) < length:
            raise BadFrame(f"the seed file is cut short within {what}: it was not written or copied to its end", _HINT)
        self._seal.update(data)
        self.read_bytes += length
        return data
