"""Damaged blocks of a volume: which points have them, where a good copy lies, and putting it back.

A block lies in one file and shows through in every later point that did not change it. So the oldest point that has
the damage is written to, and then the others are looked at again.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Self

from agent.protocol.digests import DIGEST_BYTES, DigestMap, block_digest
from agent.protocol.errors import NotFound, StorageError
from recovery.sites.contract import Site, VolumeKey
from service.receiver.points import PointArchive

_SEARCH_BLOCKS = 4096
_MOST_COPIES = 8
"""Of one block in one point, before another point is asked."""
_HEAL_BLOCKS = 256
"""Healed at a time: their contents are held in memory."""

Elsewhere = Callable[[set[bytes]], dict[bytes, bytes]]
"""Digests wanted -> the blocks that the tenant's other servers have of them, proven."""

log = logging.getLogger(__name__)


class VolumePoints:
    """One replica volume in all of its points: what each block should be there, and what it is. A context manager."""

    def __init__(self, site: Site, archive: PointArchive, key: VolumeKey) -> None:
        self._key = key
        self._site = site
        self._archive = archive
        self._digests: dict[str, DigestMap | None] = {}
        try:
            self.points = site.snapshots(key)
        except StorageError as error:  # a chain that cannot be followed: the point itself can be looked at all the same
            log.warning("volume %d of %s: %s", key.index, key.server_id, error)
            self.points = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for digests in self._digests.values():
            if digests is not None:
                digests.close()
        self._digests.clear()

    def upwards(self, point_id: str) -> list[str]:
        """The point and all that stand on it, oldest first."""
        return self.points[self.points.index(point_id) :] if point_id in self.points else [point_id]

    def downwards(self, point_id: str) -> list[str]:
        """All that the point stands on, newest first."""
        return self.points[: self.points.index(point_id)][::-1] if point_id in self.points else []

    def digest_chain(self, point_id: str) -> list[str]:
        """The points whose digest documents make this one's map; none if it does not say."""
        with contextlib.suppress(NotFound, StorageError, IndexError):
            return self._archive.manifest(self._key.server_id, point_id).digests[self._key.index]
        return []

    def suffering(self, point_id: str, blocks: list[int]) -> dict[int, list[str]]:
        """For each block of the point that is damaged: the points, oldest first, in which it should be the same and
        is damaged as well. What is no longer damaged is left out."""
        wanted = {block: self._should_be(point_id, block) for block in blocks}
        found: dict[int, list[str]] = {}
        for other in self.points or [point_id]:
            same = [block for block, digest in wanted.items() if digest and self._should_be(other, block) == digest]
            good = {block for block, _ in self._good(other, same)}
            for block in same:
                if block not in good:
                    found.setdefault(block, []).append(other)
        return dict(sorted(found.items()))

    def copies(self, wanted: set[bytes], points: list[str]) -> dict[bytes, bytes]:
        """The blocks with these digests that the points have anywhere on the volume, proven."""
        found: dict[bytes, bytes] = {}
        for point in points:
            missing = wanted - found.keys()
            places = list(self._places(point, missing)) if missing else []
            for block, content in self._good(point, places):
                found[self._map(point)[block]] = content
        return found

    def heal(self, point_id: str, blocks: list[int], elsewhere: Elsewhere) -> list[int]:
        """Put back these blocks of a point where a good copy lies anywhere, also in the points that share their damage.
        Returns those healed. Raises Conflict (something uses the chain), StorageError (it must not be written)."""
        healed: list[int] = []
        for at in range(0, len(blocks), _HEAL_BLOCKS):
            some = blocks[at : at + _HEAL_BLOCKS]
            wanted = {digest for block in some if (digest := self._should_be(point_id, block))}
            contents = self.copies(wanted, self.points[::-1])
            if wanted - contents.keys():
                contents |= elsewhere(wanted - contents.keys())
            curable = [block for block in some if self._should_be(point_id, block) in contents]
            self._put_back(point_id, curable, contents)
            healed += curable
        return healed

    def _put_back(self, point_id: str, blocks: list[int], contents: dict[bytes, bytes]) -> None:
        while ill := self.suffering(point_id, blocks):
            oldest: dict[str, list[int]] = {}
            for block, points in ill.items():
                oldest.setdefault(points[0], []).append(block)
            for point, some in oldest.items():
                self._write(point, some, contents)
                if not any(self._good(point, some)):
                    raise StorageError(f"what was written into point {point} does not stay", "replace its disk")

    def _write(self, point_id: str, blocks: list[int], contents: dict[bytes, bytes]) -> None:
        """Nothing is ever written but what the point's own signed digests say."""
        grid, parts = self._map(point_id).grid, []
        for block in blocks:
            content = contents[self._map(point_id)[block]]
            if block_digest(content) != self._map(point_id)[block]:
                raise StorageError(f"block {block} is not what point {point_id} should have")
            parts.append((grid.offset(block), content))
        self._site.repair_snapshot(self._key, point_id, parts)
        log.warning("healed in point %s of %s: blocks %s", point_id, self._key.server_id, blocks)

    def _places(self, point_id: str, wanted: set[bytes]) -> Iterator[int]:
        """Blocks of the point that should have one of the digests; not every one of very many."""
        digests, seen = self._digests_of(point_id), Counter[bytes]()
        if digests is None:
            return
        for blocks in digests.grid.pieces(_SEARCH_BLOCKS):
            run = digests.run(blocks)
            for position, block in enumerate(blocks):
                digest = run[position * DIGEST_BYTES : (position + 1) * DIGEST_BYTES]
                if digest in wanted and seen[digest] < _MOST_COPIES:
                    seen[digest] += 1
                    yield block

    def _good(self, point_id: str, blocks: list[int]) -> Iterator[tuple[int, bytes]]:
        """Those of the blocks that are what they should be, with their content, read from the medium."""
        digests = self._digests_of(point_id)
        if digests is None or not blocks:
            return
        try:
            io = self._site.open_snapshot(self._key, point_id)
        except (NotFound, StorageError):
            return
        with contextlib.closing(io):
            for block in blocks:
                with contextlib.suppress(StorageError):
                    content = bytes(io.read(digests.grid.offset(block), digests.grid.length(block)))
                    if block_digest(content) == digests[block]:
                        yield block, content

    def _should_be(self, point_id: str, block: int) -> bytes | None:
        """The block's digest in that point; None where there is no such block, or nothing that can be trusted."""
        digests = self._digests_of(point_id)
        return digests[block] if digests is not None and block < digests.grid.count else None

    def _map(self, point_id: str) -> DigestMap:
        digests = self._digests_of(point_id)
        if digests is None:
            raise StorageError(f"the digests of point {point_id} are damaged")
        return digests

    def _digests_of(self, point_id: str) -> DigestMap | None:
        if point_id not in self._digests:
            self._digests[point_id] = None
            with contextlib.suppress(NotFound, StorageError, IndexError):
                manifest = self._archive.manifest(self._key.server_id, point_id)
                self._digests[point_id] = self._archive.digests(manifest, self._key.index)
        return self._digests[point_id]
