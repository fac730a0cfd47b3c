"""Pull: the other side says what it holds, and gets only what differs, each block checked when it was read.

Of a block that the other side has in another state it may ask for the pages that differ: it names their sums.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from agent.protocol.brief import SHORT_BYTES, beginnings, decode_brief
from agent.protocol.digests import ZERO_DIGEST, DigestMap, block_digest
from agent.protocol.errors import NotFound, StorageError
from agent.protocol.frames import Frame, Kind, blocks_frame, decode_single, encode_offer, encode_until, encode_zeros
from agent.protocol.grid import MAX_BLOCK_BYTES, consecutive
from agent.protocol.pages import Patch, differing_pages, encode_patches, page_count, read_offer_with_sums
from recovery.sites.contract import VolumeIO
from service.receiver.manifest import Manifest
from service.receiver.older import READ_BYTES, near
from service.receiver.open_points import OpenPoints
from service.receiver.points import PointArchive

ANSWER_BYTES = 4 << 20
"""Of content in one answer, which is put together in memory."""
LOOKED_AT_BYTES = 64 << 20
"""Of blocks that are read for one answer with pages: little of each may differ, and nobody shall wait for long."""
COMPRESSION_LEVEL = 1
MAX_COMPRESSION_LEVEL = 3
"""An asker behind a slow line may ask for more than 1; the work is ours."""
PATCH_LEVEL = MAX_COMPRESSION_LEVEL
"""Pages are few: to pack them better costs next to nothing."""

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Answer:
    """Frames, as heads and payloads. `until`: the block up to which they answer what was offered; None: all of it."""

    frames: Sequence[Buffer]
    until: int | None = None

    def body(self) -> list[Buffer]:
        """As it travels."""
        return [*self.frames, *([encode_until(self.until)] if self.until is not None else [])]


class PointReader:
    """For many threads. Keeps the volumes that are being pulled open between requests; call `close_idle` now and then.

    An answer has at most ANSWER_BYTES of content, packed as hard as `level` says. Raises NotFound, BadFrame, and
    StorageError if a block read back is not what the point had."""

    def __init__(self, archive: PointArchive) -> None:
        self._open = OpenPoints(archive)
        self._own = threading.local()

    def differing(
        self,
        manifest: Manifest,
        index: int,
        body: Buffer,
        level: int = COMPRESSION_LEVEL,
        *,
        by_name: bool = False,
        brief: bool = False,
    ) -> Answer:
        """`body` is an OFFER of what the asker holds, or a brief one; the answer brings the blocks of the point that
        differ. `by_name`: where the asker holds something else than zeros, they are only named, in an OFFER."""
        _check_volume(manifest, index)
        with self._open.volume(manifest, index) as (digests, io):
            found = _in_brief(body, digests) if brief else _in_full(body, digests)
            return _Volume(manifest, digests, io, self._memory()).differing(found, _allowed(level), by_name)

    def pages(self, manifest: Manifest, index: int, body: Buffer, level: int = COMPRESSION_LEVEL) -> Answer:
        """`body` is an OFFER of what the asker holds, with the sums of its pages; the answer brings the pages of the
        point that differ, and whole blocks where all of them do, or none seems to."""
        _check_volume(manifest, index)
        with self._open.volume(manifest, index) as (digests, io):
            offer, sums = read_offer_with_sums(body, digests.grid)
            return _Volume(manifest, digests, io, self._memory()).pages(offer, sums, _allowed(level))

    def close_idle(self) -> None:
        """Close what nobody has read from for long, so that retention can merge the chain."""
        self._open.close_idle()

    def close(self) -> None:
        self._open.close()

    def _memory(self) -> memoryview:
        """This thread's own, aligned, so that the disk can write to it."""
        memory: memoryview | None = getattr(self._own, "memory", None)
        if memory is None:
            memory = self._own.memory = memoryview(mmap.mmap(-1, max(ANSWER_BYTES, READ_BYTES, MAX_BLOCK_BYTES)))
        return memory


@dataclass(frozen=True, slots=True)
class _Volume:
    """A volume of a point, while something is answered about it."""

    manifest: Manifest
    digests: DigestMap
    io: VolumeIO
    memory: memoryview

    def differing(self, found: Iterable[tuple[int, Buffer]], level: int, by_name: bool) -> Answer:
        """`found`: blocks that differ, rising, and the beginnings at least of the digests of what is held."""
        zeros: list[int] = []
        named: list[int] = []
        whole: list[int] = []
        most = max(1, ANSWER_BYTES // self.digests.grid.block_bytes)
        until = None
        for index, held in found:
            if self.digests[index] == ZERO_DIGEST:
                zeros.append(index)
            elif by_name and any(held):
                named.append(index)
            elif len(whole) < most:
                whole.append(index)
            else:
                until = index
                break
        frames: list[Buffer] = [encode_zeros(zeros)] if zeros else []
        if named:
            frames.append(encode_offer(named, b"".join(map(self.digests.__getitem__, named))))
        if whole:
            frames += self._content(tuple(whole), level)
        return Answer(frames, until)

    def _content(self, indices: tuple[int, ...], level: int) -> tuple[bytes, Buffer]:
        """A BLOCKS frame, read into memory where the blocks lie next to one another."""
        filled = 0
        for start, stop in consecutive(indices):
            content = self._read(range(indices[start], indices[stop - 1] + 1), filled)
            for at, index in enumerate(indices[start:stop]):
                self._prove(index, content[at * self.digests.grid.block_bytes :])
            filled += len(content)
        digests = b"".join(map(self.digests.__getitem__, indices))
        head, payload = blocks_frame(indices, digests, [self.memory[:filled]], level)
        return head, bytes(payload)  # the memory is for the next answer

    def pages(self, offer: Frame, sums: Sequence[Buffer], level: int) -> Answer:
        patches: list[Patch] = []
        whole: list[tuple[int, bytes]] = []
        content_bytes = read_bytes = 0
        until = None
        for index, block, held in self._blocks(offer, sums):
            pages = differing_pages(block, held)
            patch = None
            if 0 < len(pages) < page_count(len(block)):
                patch = Patch.of(index, self.digests[index], block, pages)
            size_bytes = len(block) if patch is None else patch.size_bytes
            if read_bytes and (content_bytes + size_bytes > ANSWER_BYTES or read_bytes >= LOOKED_AT_BYTES):
                until = index
                break
            content_bytes += size_bytes
            read_bytes += len(block)
            if patch is None:
                whole.append((index, bytes(block)))
            else:
                patches.append(patch)
        frames: list[Buffer] = []
        if whole:
            digests = b"".join(self.digests[index] for index, _ in whole)
            frames += blocks_frame([index for index, _ in whole], digests, [block for _, block in whole], level)
        if patches:
            frames += encode_patches(patches, self.digests.grid, PATCH_LEVEL)
        return Answer(frames, until)

    def _blocks(self, offer: Frame, sums: Sequence[Buffer]) -> Iterator[tuple[int, memoryview, Buffer]]:
        """Those of the blocks offered that differ, and their sums; each valid until the next is asked for."""
        grid = self.digests.grid
        wanted = [at for at, index in enumerate(offer.indices) if offer.digest(at) != self.digests[index]]
        indices = [offer.indices[at] for at in wanted]
        for positions in near(grid, indices):
            first = indices[positions.start]
            content = self._read(range(first, indices[positions.stop - 1] + 1))
            for position in positions:
                begin = grid.offset(indices[position] - first)
                yield indices[position], self._prove(indices[position], content[begin:]), sums[wanted[position]]

    def _read(self, blocks: range, at: int = 0) -> memoryview:
        """Consecutive blocks, in memory from byte `at` on."""
        offset, length = self.digests.grid.span(blocks)
        content = self.memory[at : at + length]
        self.io.read_into(offset, content)
        return content

    def _prove(self, index: int, content: memoryview) -> memoryview:
        """The block that `content` begins with."""
        block = content[: self.digests.grid.length(index)]
        if block_digest(block) != self.digests[index]:
            raise StorageError(
                f"block {index} of point {self.manifest.point.id} is damaged at the site",
                "see how much of it: understudy verify; another point may have it whole",
            )
        return block


def _in_full(body: Buffer, digests: DigestMap) -> Iterable[tuple[int, Buffer]]:
    offer = decode_single(body, Kind.OFFER)
    offer.check_against(digests.grid)
    held = ((index, offer.digest(position)) for position, index in enumerate(offer.indices))
    return ((index, digest) for index, digest in held if digest != digests[index])


def _in_brief(body: Buffer, digests: DigestMap) -> Iterable[tuple[int, Buffer]]:
    blocks, held = decode_brief(body, digests.grid)
    wanted = beginnings(digests.run(blocks))
    if held == wanted:  # as of most of a disk
        return ()
    places = zip(blocks, range(0, len(held), SHORT_BYTES), strict=True)
    return (
        (i, held[at : at + SHORT_BYTES])
        for i, at in places
        if held[at : at + SHORT_BYTES] != wanted[at : at + SHORT_BYTES]
    )


def _check_volume(manifest: Manifest, index: int) -> None:
    if not 0 <= index < len(manifest.point.volumes):
        raise NotFound(f"point {manifest.point.id} has no volume {index}")


def _allowed(level: int) -> int:
    return min(max(level, 0), MAX_COMPRESSION_LEVEL)
