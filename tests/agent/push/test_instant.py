"""The last reading before a point: what moves while it is read is read again, and comes in the order of the disk."""

from __future__ import annotations

from typing import Any

import pytest

from agent.protocol.errors import FreezeError
from agent.protocol.grid import BlockGrid
from agent.push import instant
from agent.push.volume import Change

BLOCK = 65536


class Volume:
    """`writes`: what somebody writes before each look, as block numbers."""

    def __init__(self, writes: list[list[int]]) -> None:
        self.grid = BlockGrid(16 * BLOCK)
        self.volume = self.source = self
        self.path = "/dev/vda"
        self.reads = 0
        self._writes = writes

    def changed_ranges(self) -> list[tuple[int, int]]:
        return [(index * BLOCK, BLOCK) for index in (self._writes.pop(0) if self._writes else [])]

    def changes_within(self, ranges: list[tuple[int, int]], most_bytes: int) -> list[Change] | None:
        self.reads += 1
        found = [Change(at // BLOCK, bytes([self.reads]) * 32, bytes(BLOCK)) for at, _ in ranges]
        return None if len(found) * BLOCK > most_bytes else found


def until_still(*volumes: Volume) -> Any:
    return instant._read_until_still(list(volumes))  # type: ignore[arg-type]


def test_what_moved_again_is_taken_as_it_is_at_last_and_in_rising_order() -> None:
    (changes,), _ = until_still(Volume([[5, 9], [2, 9]]))
    assert [(change.index, change.digest[0]) for change in changes] == [(2, 2), (5, 1), (9, 2)]


def test_a_volume_that_was_read_first_is_looked_at_again_after_the_last() -> None:
    first, second = Volume([[1], [3]]), Volume([[1]])
    (of_first, of_second), _ = until_still(first, second)
    assert [change.index for change in of_first] == [1, 3]
    assert [change.index for change in of_second] == [1]


def test_what_never_stands_still_is_no_point() -> None:
    with pytest.raises(FreezeError, match="/dev/vda is written to"):
        until_still(Volume([[1]] * 100))


def test_memory_is_limited_for_all_volumes_and_rounds_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instant, "MEMORY_BYTES", 3 * BLOCK)
    assert until_still(Volume([[1, 2]]), Volume([[1]]))[0] is not None
    assert until_still(Volume([[1, 2]]), Volume([[1, 2]]))[0] is None
    assert until_still(Volume([[1, 2], [3, 4]]))[0] is None
