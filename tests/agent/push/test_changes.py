"""Changed blocks and the memory that they lie in."""

from __future__ import annotations

from agent.protocol.grid import BlockGrid
from agent.push.changes import Change, contents

GRID = BlockGrid(10 * 4096 + 512, 4096)
DIGEST = bytes(32)


def test_blocks_that_lie_next_to_one_another_are_one_view() -> None:
    buffer = memoryview(bytearray(range(256)) * 256)
    changes = [Change(index, DIGEST, buffer, index * 4096) for index in (0, 1, 2, 5, 6)]
    views = contents(changes, GRID)
    assert [len(view) for view in views] == [3 * 4096, 2 * 4096]
    assert b"".join(views) == bytes(buffer[: 3 * 4096]) + bytes(buffer[5 * 4096 : 7 * 4096])


def test_a_kept_change_does_not_change_with_its_buffer() -> None:
    buffer = memoryview(bytearray(b"a" * 4096))
    kept = Change(3, DIGEST, buffer).kept(GRID)
    buffer[:] = b"b" * 4096
    assert bytes(kept.content(GRID)) == b"a" * 4096
    assert Change(3, DIGEST, None).kept(GRID).source is None


def test_the_last_block_is_as_short_as_its_volume_says() -> None:
    change = Change(10, DIGEST, bytes(4096))
    assert len(change.content(GRID)) == 512 == len(contents([change], GRID)[0])
