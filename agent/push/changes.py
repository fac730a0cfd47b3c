"""Changed blocks: what differs from what the receiver holds, with the content or a view of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agent.protocol.grid import BlockGrid


@dataclass(frozen=True, slots=True)
class Change:
    """A block that differs from what the receiver holds. Its content is the block's length of `source` from `at` on;
    `source` is None for a block of zeros."""

    index: int
    digest: bytes
    source: memoryview | bytes | None
    at: int = 0

    def content(self, grid: BlockGrid) -> memoryview:
        """Of a block that is not zero."""
        assert self.source is not None
        return memoryview(self.source)[self.at : self.at + grid.length(self.index)]

    def kept(self, grid: BlockGrid) -> Change:
        """The same with a copy of its content: the buffer that it lies in is about to be read into again."""
        if self.source is None:
            return self
        return Change(self.index, self.digest, bytes(self.content(grid)))


def contents(changes: Sequence[Change], grid: BlockGrid) -> list[memoryview]:
    """The contents in order, in as few views as the memory they lie in allows."""
    views: list[memoryview] = []
    first, length = changes[0], 0
    for change in changes:
        if length and (change.source is not first.source or change.at != first.at + length):
            views.append(_view(first, length))
            first, length = change, 0
        length += grid.length(change.index)
    views.append(_view(first, length))
    return views


def _view(first: Change, length: int) -> memoryview:
    assert first.source is not None
    return memoryview(first.source)[first.at : first.at + length]
