"""One source volume within a push: reads and hashes pieces, offers what changed, sends what is lacking.

`held` is what the receiver holds of the volume, as far as we know: it begins as the cached map of the last point, and
an entry changes when the receiver has answered for that block. A push is done when `held` describes the source.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass

from agent.pieces import PIECE_BYTES, WORKERS, hash_piece, piece_blocks, pieces_with_data, share_out
from agent.protocol.digests import DIGEST_BYTES, ZERO_DIGEST, DigestMap, segment_digest
from agent.protocol.grid import BlockGrid
from agent.push.bring import Bringer, Tally
from agent.push.changes import Change
from agent.push.packing import KEPT_SHARE
from agent.push.segments import Compared, Piece, by_segment, segment_of, segment_of_zeros
from agent.push.unasked import Unasked
from agent.turns import Turns
from agent.volumes.source import SourceVolume, aligned_buffer

KEPT_BYTES = 16 << 20
KEPT_BLOCKS = 4096
"""The most that wait, in content, and in blocks with those of zeros."""
SCATTERED_AT_ONCE = 2


PIECES_AT_ONCE = 16
"""The most that a thread looks at before the event loop hears of it."""
PIECES_AHEAD = 256
"""The most that are looked at before it is known whether there will be a push."""

Buffer = bytes | bytearray | memoryview


@dataclass(slots=True)
class _Look:
    """What a thread found: pieces that are as they were, and then perhaps one that is not, `passed_bytes` of disk in
    all, `read_bytes` of it no holes. `parcel`: the body that brings that piece, if it may go without being offered."""

    passed_bytes: int = 0
    read_bytes: int = 0
    piece: range | None = None
    digests: bytes = b""
    parcel: list[Buffer] | None = None
    ended: bool = False


class _Scattered:
    """Changes of several pieces, which travel together: the more there are, the better they pack."""

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self.size_bytes = 0

    def keep(self, changes: list[Change], grid: BlockGrid) -> None:
        kept = [change.kept(grid) for change in changes]
        self.changes += kept
        self.size_bytes += sum(len(change.source or b"") for change in kept)

    def taken(self) -> list[Change]:
        """All of them, by rising index; then there are none. Workers are not always through with pieces in order."""
        changes, self.changes, self.size_bytes = self.changes, [], 0
        return sorted(changes, key=lambda change: change.index)


class VolumePush:
    """Reading and hashing run on `threads`; the calls are for one event loop. `bringer` and `unasked` must be set
    before sending."""

    def __init__(
        self,
        index: int,
        source: SourceVolume,
        held: DigestMap,
        threads: Executor,
        tally: Tally,
        on_progress: Callable[[int], None],
        workers: int = WORKERS,
    ) -> None:
        """`workers`: how many pieces it has in hand at once."""
        self.index = index
        self.source = source
        self.grid: BlockGrid = held.grid
        self.held = held
        self.bringer: Bringer
        self.unasked: Unasked
        self.turns = Turns(WORKERS)
        """Workers that have a piece in hand, with memory for it."""
        self._threads = threads
        self._tally = tally
        self._on_progress = on_progress
        self._workers = workers
        self._ahead: dict[int, bytes] = {}
        """Digests of pieces that were looked at ahead, by their first blocks."""
        self._doubted: set[int] = set()
        """Segments of which it is not known what the receiver holds, until they have been brought."""

    def look_ahead(self, stop: threading.Event) -> None:
        """Read from the front, in this thread, while nobody knows yet what the receiver holds. What turns out not to
        have changed is not read again by `send_all`; its content is not kept."""
        buffer = aligned_buffer(PIECE_BYTES)
        pieces = pieces_with_data(self.grid, self.source.data_ranges())
        for blocks, has_data in itertools.islice(pieces, PIECES_AHEAD):
            if stop.is_set():
                break
            if has_data:
                self._ahead[blocks.start] = self._read_and_hash(blocks, buffer)
                self._tally.read_bytes += self.grid.span(blocks)[1]

    async def send_all(self, segments: list[bytes] | None = None) -> None:
        """Read the whole volume (but not its holes) and bring the receiver to it.

        `segments`: what the receiver holds, where `held` does not say it; only blocks of those that differ are
        offered."""
        equal = set[int]() if segments is None else await self._compare_all(segments)
        pieces = pieces_with_data(self.grid, self.source.data_ranges())
        await self._send(piece for piece in pieces if segment_of(piece[0]) not in equal)
        self._doubted.clear()

    async def send_ranges(self, ranges: list[tuple[int, int]]) -> None:
        """The same for byte ranges that changed meanwhile."""
        await self._send((blocks, True) for blocks in self.grid.covering(ranges, piece_blocks(self.grid)))

    def changes_within(self, ranges: list[tuple[int, int]], most_bytes: int) -> list[Change] | None:
        """Read the ranges now and return what differs from `held`, or None if that is more than `most_bytes`.

        For use while the filesystems are frozen: touches nothing but the source and memory."""
        found: list[Change] = []
        kept_bytes = 0
        buffer = aligned_buffer(PIECE_BYTES)
        for blocks in self.grid.covering(ranges, piece_blocks(self.grid)):
            digests = self._read_and_hash(blocks, buffer)
            self._tally.read_bytes += self.grid.span(blocks)[1]
            for index in self._differing(blocks, digests):
                change = self._change(blocks, index, digests, buffer).kept(self.grid)
                found.append(change)
                kept_bytes += len(change.source or b"")
            if kept_bytes > most_bytes:
                return None
        return found

    async def send_changes(self, changes: list[Change]) -> None:
        """Send what `changes_within` found."""
        for at in range(0, len(changes), KEPT_BLOCKS):
            await self.bringer.bring(changes[at : at + KEPT_BLOCKS])
        wrong = set(await self.bringer.finish())
        await self.bringer.bring([change for change in changes if change.index in wrong], whole=True)

    def whole(self) -> list[tuple[int, int]]:
        """The whole volume as one range."""
        return [(0, self.grid.size_bytes)]

    # --- pieces ---

    async def _compare_all(self, theirs: list[bytes]) -> set[int]:
        """Enter into `held` what the receiver has of segments that are the same there, and of those that are all zeros
        there; doubt the others. Returns the former: they need not be read again."""
        equal: set[int] = set()

        async def worker(shared: Iterator[tuple[int, list[Piece]]], buffer: memoryview) -> None:
            loop = asyncio.get_running_loop()
            while True:
                async with self.turns.turn():
                    compared = await loop.run_in_executor(self._threads, self._compare, shared, theirs, buffer)
                if compared is None:
                    return
                self._tally.read_bytes += compared.read_bytes
                if compared.is_equal:
                    equal.add(compared.segment)
                    self._on_progress(compared.size_bytes)

        await share_out(by_segment(pieces_with_data(self.grid, self.source.data_ranges())), worker, self._workers)
        return equal

    def _compare(
        self, shared: Iterator[tuple[int, list[Piece]]], theirs: list[bytes], buffer: memoryview
    ) -> Compared | None:
        """The next segment, read unless it is a hole here or there; None: there is no other."""
        segment, pieces = next(shared, (0, []))
        if not pieces:
            return None
        blocks = range(pieces[0][0].start, pieces[-1][0].stop)
        compared = Compared(segment, self.grid.span(blocks)[1])
        if theirs[segment] == segment_of_zeros(len(blocks)):
            return compared  # as `held` says: no block of it needs to be offered
        if any(has_data for _, has_data in pieces):
            mine = bytearray()
            for piece, has_data in pieces:
                if has_data and piece.start not in self._ahead:
                    compared.read_bytes += self.grid.span(piece)[1]
                    mine += self._read_and_hash(piece, buffer)
                else:
                    mine += self._ahead.get(piece.start) or bytes(len(piece) * DIGEST_BYTES)
            compared.is_equal = segment_digest(mine) == theirs[segment]
        if compared.is_equal:
            self.held.set_run(blocks, bytes(mine))
        else:
            self._doubted.add(segment)
        return compared

    def _is_known(self, blocks: range) -> bool:
        """Does `held` say what the receiver has of this piece?"""
        return segment_of(blocks) not in self._doubted

    async def _send(self, pieces: Iterable[Piece]) -> None:
        scattered = _Scattered()
        turns = asyncio.Semaphore(SCATTERED_AT_ONCE)

        async def worker(shared: Iterator[Piece], buffer: memoryview) -> None:
            loop = asyncio.get_running_loop()
            while True:
                async with self.turns.turn():
                    while not self.turns.are_too_many:
                        look = await loop.run_in_executor(self._threads, self._look, shared, buffer)
                        self._tally.read_bytes += look.read_bytes
                        if look.piece is not None:
                            await bring(look.piece, look.digests, look.parcel, buffer)
                        self._on_progress(look.passed_bytes)
                        if look.ended:
                            return

        async def bring(blocks: range, digests: bytes, parcel: list[Buffer] | None, buffer: memoryview) -> None:
            if parcel is not None:
                await self.unasked.send(blocks, digests, parcel)
                return
            is_known = self._is_known(blocks)
            indices = self._differing(blocks, digests) if is_known else list(blocks)
            changes = [self._change(blocks, index, digests, buffer) for index in indices]
            if sum(change.source is not None for change in changes) * KEPT_SHARE < len(blocks):
                scattered.keep(changes, self.grid)
                if scattered.size_bytes >= KEPT_BYTES or len(scattered.changes) >= KEPT_BLOCKS:
                    together = scattered.taken()
                    async with turns:
                        await self.bringer.bring(together)
            else:
                await self.bringer.bring(changes, new=is_known and self.unasked.lacking(blocks))

        await share_out(pieces, worker, self._workers)
        await self.bringer.bring(scattered.taken())
        await self._bring_whole(await self.bringer.finish())

    async def _bring_whole(self, indices: list[int]) -> None:
        """Blocks of which pages were not enough: read again, since nobody kept them."""
        buffer = aligned_buffer(self.grid.block_bytes)
        for index in indices:
            blocks = range(index, index + 1)
            digests = await asyncio.get_running_loop().run_in_executor(
                self._threads, self._read_and_hash, blocks, buffer
            )
            await self.bringer.bring([self._change(blocks, index, digests, buffer)], whole=True)

    def _look(self, shared: Iterator[Piece], buffer: memoryview) -> _Look:
        """Take pieces until one has to be brought, in one thread: what did not change costs no more than reading it."""
        look = _Look()
        for _ in range(PIECES_AT_ONCE):
            piece = next(shared, None)
            if piece is None:
                look.ended = True
                break
            blocks, has_data = piece
            length = self.grid.span(blocks)[1]
            look.passed_bytes += length
            is_known = self._is_known(blocks)
            if is_known and self._ahead.pop(blocks.start, None) == self.held.run(blocks):
                continue
            digests = self._read_and_hash(blocks, buffer) if has_data else bytes(len(blocks) * DIGEST_BYTES)
            look.read_bytes += length * has_data
            if not is_known or self.held.run(blocks) != digests:
                look.piece, look.digests = blocks, digests
                if is_known:
                    look.parcel = self.unasked.packed(blocks, digests, buffer[:length])
                break
        return look

    def _read_and_hash(self, blocks: range, buffer: memoryview) -> bytes:
        offset, length = self.grid.span(blocks)
        self.source.read_into(buffer[:length], offset)
        return hash_piece(self.grid, buffer[:length])

    def _differing(self, blocks: range, digests: bytes) -> list[int]:
        held = self.held.run(blocks)
        if held == digests:
            return []
        return [
            index
            for at, index in enumerate(blocks)
            if held[at * DIGEST_BYTES : (at + 1) * DIGEST_BYTES] != digests[at * DIGEST_BYTES : (at + 1) * DIGEST_BYTES]
        ]

    def _change(self, blocks: range, index: int, digests: bytes, buffer: memoryview) -> Change:
        """The change of one block of a piece; its content is a view into `buffer`."""
        at = index - blocks.start
        digest = digests[at * DIGEST_BYTES : (at + 1) * DIGEST_BYTES]
        if digest == ZERO_DIGEST:
            return Change(index, digest, None)
        return Change(index, digest, buffer, at * self.grid.block_bytes)
