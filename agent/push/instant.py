"""The instant of a recovery point: what moved since the volumes were read, brought to one moment for all of them.

With mounted filesystems: they are frozen, what differs is read into memory, they are thawed, and only then is it sent.
A change tracker makes the frozen reading short; without one the whole disk is hashed while frozen, within a limit.
Without mounted filesystems: the sources are read again until nobody wrote to them meanwhile.

Nothing between freeze and thaw may touch a filesystem: no logging, no imports, no cache files, no progress.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Executor
from dataclasses import dataclass

from agent.consistency.freeze import Freeze, lock_memory, unlock_memory
from agent.pacing.priority import raised
from agent.protocol.errors import FreezeError
from agent.push.changes import Change
from agent.push.volume import VolumePush
from agent.tracking.tracker import ChangeTracker, Untracked
from agent.volumes.activity import ActivityMark, mark
from agent.volumes.topology import MountedFilesystem

FREEZE_LIMIT_SECONDS = 30.0
PRECOPY_ROUNDS = 5
FROZEN_ROUNDS = 20  # each takes milliseconds; swap, which no freeze holds, may write in some of them
SMALL_BYTES = 32 << 20
"""Pre-copy ends when a round found no more than this."""
MEMORY_BYTES = 512 << 20
"""How much changed data may be held in memory while frozen."""


@dataclass(slots=True)
class Watched:
    """A volume of the push, and how changes to it are noticed."""

    volume: VolumePush
    tracker: ChangeTracker | Untracked
    mark: ActivityMark

    def changed_ranges(self) -> list[tuple[int, int]]:
        """Where it was written since the last call: exactly if tracked, else nothing or everything."""
        before, self.mark = self.mark, mark(self.volume.source.path)
        if isinstance(self.tracker, ChangeTracker):
            return self.tracker.take().ranges  # the whole volume where the tracker is in doubt
        return [] if self.mark == before and self.mark.reliable else self.volume.whole()


@dataclass(frozen=True, slots=True)
class Instant:
    """`at` is on the monotonic clock. `frozen_seconds` is 0 where there was nothing to freeze."""

    at: float
    frozen_seconds: float


async def reach_instant(watched: list[Watched], filesystems: list[MountedFilesystem], threads: Executor) -> Instant:
    """Bring the receiver to one instant of all volumes. Raises FreezeError, SourceError or what sending raises."""
    if not filesystems:
        return await _settle(watched)
    freeze = Freeze(filesystems, limit_seconds=FREEZE_LIMIT_SECONDS)
    loop = asyncio.get_running_loop()
    try:
        for _ in range(PRECOPY_ROUNDS):
            await loop.run_in_executor(threads, freeze.prepare)
            moved_bytes = 0
            for one in watched:
                if isinstance(one.tracker, ChangeTracker):
                    ranges = one.changed_ranges()
                    moved_bytes += sum(length for _, length in ranges)
                    await one.volume.send_ranges(ranges)
            if moved_bytes <= SMALL_BYTES:
                break
        lock_memory()
        with raised():  # others wait for us now
            found, at, frozen_seconds = await loop.run_in_executor(threads, _read_frozen, freeze, watched)
    finally:
        await loop.run_in_executor(threads, freeze.close)
        unlock_memory()
    for one, changes in zip(watched, found, strict=True):
        await one.volume.send_changes(changes)
    return Instant(at, frozen_seconds)


def _read_frozen(freeze: Freeze, watched: list[Watched]) -> tuple[list[list[Change]], float, float]:
    """Freeze, read what differs, thaw. In one thread, so that nothing else of ours comes in between."""
    freeze.freeze()
    restless: FreezeError | None = None
    try:
        found, at = _read_until_still(watched)
    except FreezeError as error:
        restless = error
    finally:
        thawed = freeze.thaw()
    if not thawed.held:
        reasons = [one.tracker.reason for one in watched if isinstance(one.tracker, Untracked)]
        why = f"; its changes cannot be tracked: {reasons[0]}" if reasons else ""
        raise FreezeError(f"the filesystems were thawed before all was read (limit {FREEZE_LIMIT_SECONDS:.0f} s{why})")
    if restless is not None:
        raise restless
    if found is None:
        raise FreezeError(f"more than {MEMORY_BYTES >> 20} MiB changed between the first reading and the freeze")
    return found, at, thawed.seconds


def _read_until_still(watched: list[Watched]) -> tuple[list[list[Change]] | None, float]:
    """What differs from the replica, and since when it has stood still. None: more than memory may hold.

    A freeze holds filesystems, but not all who write to a disk: swap, a vfat that cannot be frozen, dd. So what was
    written while we read is read again, until nothing was: that is the proof of one instant, not the freeze alone.
    """
    found: list[dict[int, Change]] = [{} for _ in watched]
    for _ in range(FROZEN_ROUNDS):
        at = time.monotonic()
        moved = [one.changed_ranges() for one in watched]
        if not any(moved):
            return [[changes[index] for index in sorted(changes)] for changes in found], at  # offers need them rising
        for one, ranges, changes in zip(watched, moved, found, strict=True):
            for blocks in one.volume.grid.covering(ranges, one.volume.grid.count):
                for index in [index for index in changes if index in blocks]:
                    del changes[index]
            kept_bytes = sum(len(change.source or b"") for kept in found for change in kept.values())
            fresh = one.volume.changes_within(ranges, MEMORY_BYTES - kept_bytes)
            if fresh is None:
                return None, at
            changes.update((change.index, change) for change in fresh)
    names = ", ".join(one.volume.source.path for one, ranges in zip(watched, moved, strict=True) if ranges)
    raise FreezeError(
        f"{names} is written to while its filesystems are frozen, by swap or by a program that uses the disk itself",
        "earlier recovery points are untouched; push again when the server swaps less, or stop that program",
    )


async def _settle(watched: list[Watched]) -> Instant:
    """Read again what was written meanwhile, until nothing was."""
    for _ in range(PRECOPY_ROUNDS):
        at = time.monotonic()
        moved = [(one, ranges) for one in watched if (ranges := one.changed_ranges())]
        if not moved:
            return Instant(at, 0.0)
        for one, ranges in moved:
            one.volume.source.check_unchanged()
            await one.volume.send_ranges(ranges)
    names = ", ".join(one.volume.source.path for one, _ in moved)
    raise FreezeError(
        f"{names} is being written to all the time, by something that cannot be frozen from here",
        "stop what writes to it, or run the agent inside the machine that uses it",
    )
