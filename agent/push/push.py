"""Push: ask where the replica stands, bring it to one instant of this server, commit. On any doubt, ask again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass

from agent.client import ServiceClient
from agent.inventory import machine_id
from agent.pieces import WORKERS, side_by_side
from agent.protocol.digests import DigestMap
from agent.protocol.errors import RootMismatch, SessionUnknown, UsageError, VolumeBusy
from agent.protocol.grid import DEFAULT_BLOCK_BYTES, BlockGrid
from agent.protocol.messages import (
    BeginReply,
    BeginRequest,
    CommitRequest,
    Point,
    VolumeDeclaration,
    VolumeStanding,
)
from agent.push.bring import Bringer, Tally
from agent.push.instant import Instant, Watched, reach_instant
from agent.push.segments import ask_segments
from agent.push.unasked import Unasked
from agent.push.volume import VolumePush
from agent.sources import ProtectedSource, open_protected
from agent.state import Position, State
from agent.tracking.tracker import ChangeTracker, open_tracker
from agent.volumes.activity import mark
from agent.volumes.topology import mounted_filesystems

BUSY_PATIENCE_SECONDS = 30.0
COMMIT_PATIENCE_SECONDS = 3600.0
ATTEMPTS = 4
VOLUMES_AT_ONCE = 4
"""They share the workers, so that their buffers are no more than those of one."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PushResult:
    """What one push did; the JSON of `understudy-agent push`. `sent_bytes` is what the socket saw, both ways.
    `found_at`: by path, the disks that volumes are here, where that is not at their own path."""

    point: str
    seconds: float
    read_bytes: int
    changed_bytes: int
    sent_bytes: int
    deduplicated_bytes: int
    frozen_seconds: float
    root: str
    completeness: str
    found_at: dict[str, str]


async def push(
    state: State,
    client: ServiceClient,
    *,
    label: str | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> PushResult:
    """One recovery point of everything that is protected. `on_progress` gets bytes read and bytes in all.

    Raises UsageError (nothing protected), SourceError, TransportError, StaleEpoch, SessionError, StorageError."""
    paths = state.protected()
    if not paths:
        raise UsageError("nothing is protected yet", "name the disks: understudy-agent protect PATH...")
    began = time.monotonic()
    with state.locked(), ThreadPoolExecutor((os.cpu_count() or 2) + 1, "push") as threads:
        failures, said = 0, ""
        while True:
            try:
                return await _Attempt(state, client, threads, paths, label, on_progress, began).run()
            except VolumeBusy as busy:
                if time.monotonic() - began > BUSY_PATIENCE_SECONDS:
                    raise
                if busy.message != said:
                    log.warning("waiting: %s", said := busy.message)
                await asyncio.sleep(1)
            except (SessionUnknown, RootMismatch) as doubt:
                failures += 1
                if failures >= ATTEMPTS:
                    raise
                log.warning("asking the service again where things stand: %s", doubt)
                if isinstance(doubt, RootMismatch):
                    for path in paths:
                        state.forget_digests(path)


class _Attempt:
    def __init__(
        self,
        state: State,
        client: ServiceClient,
        threads: Executor,
        paths: list[str],
        label: str | None,
        on_progress: Callable[[int, int], None],
        began: float,
    ) -> None:
        self._state = state
        self._client = client
        self._threads = threads
        self._paths = paths
        self._label = label
        self._on_progress = on_progress
        self._began = began
        self._tally = Tally()
        self._done_bytes = 0
        self._total_bytes = 0

    async def run(self) -> PushResult:
        if any(self._state.position(path) is None for path in self._paths):
            self._client.expect_much()
        with contextlib.ExitStack() as resources:
            protected = await asyncio.to_thread(open_protected, self._state, self._paths, resources)
            sources = [one.source for one in protected]
            grids = [BlockGrid(source.size_bytes, DEFAULT_BLOCK_BYTES) for source in sources]
            self._total_bytes = sum(grid.size_bytes for grid in grids)
            watched = [self._watch(index, one, resources) for index, one in enumerate(protected)]
            begun = await self._begin_looking_ahead(protected, grids, watched[0].volume)
            for index, one in enumerate(watched):
                held = one.volume.held
                unasked = Unasked(index, held, self._client, self._tally, begun.session, offers=begun.offers)
                one.volume.unasked = unasked
                one.volume.turns = self._client.workers
                one.volume.bringer = Bringer(
                    index, held, self._client, self._threads, self._tally, begun.session, unasked.heard
                )
            await self._send_all(begun.session, watched, begun.volumes)
            for source in sources:
                source.check_unchanged()
            filesystems = mounted_filesystems(*(source.path for source in sources))
            instant = await reach_instant(watched, filesystems, self._threads)
            for source in sources:
                source.check_unchanged()
            point = await self._commit(begun.session, watched, instant)
            self._keep(watched)
        return PushResult(
            point=point.id,
            seconds=round(time.monotonic() - self._began, 3),
            read_bytes=self._tally.read_bytes,
            changed_bytes=self._tally.changed_bytes,
            sent_bytes=self._client.wire.total_bytes,
            deduplicated_bytes=self._tally.deduplicated_bytes,
            frozen_seconds=round(instant.frozen_seconds, 3),
            root=point.root,
            completeness=point.completeness,
            found_at={one.path: one.found_at for one in protected if one.found_at is not None},
        )

    async def _send_all(self, session: str, watched: list[Watched], standings: list[VolumeStanding]) -> None:
        """Some volumes side by side: they share a line that is limited, and the end of one fills no line alone."""
        turns = asyncio.Semaphore(VOLUMES_AT_ONCE)

        async def send(index: int, volume: VolumePush, standing: VolumeStanding) -> None:
            async with turns:
                if self._recall(index, volume, standing):
                    await volume.send_all()
                else:
                    await volume.send_all(await ask_segments(self._client, session, index, volume.grid))

        pairs = zip(watched, standings, strict=True)
        await side_by_side([send(index, one.volume, standing) for index, (one, standing) in enumerate(pairs)])

    async def _begin(self, protected: list[ProtectedSource], grids: list[BlockGrid]) -> BeginReply:
        request = BeginRequest(
            machine_id=machine_id(),
            volumes=[
                VolumeDeclaration(
                    path=one.path, size_bytes=grid.size_bytes, block_bytes=grid.block_bytes, found_at=one.found_at
                )
                for one, grid in zip(protected, grids, strict=True)
            ],
            supersedes=self._state.session(),
        )
        begun = await self._client.ask("/agent/v1/sessions", request, BeginReply)
        self._client.allow_requests(begun.requests)
        self._state.save_session(begun.session)
        return begun

    async def _begin_looking_ahead(
        self, protected: list[ProtectedSource], grids: list[BlockGrid], first: VolumePush
    ) -> BeginReply:
        """While the receiver opens its volumes, the first one here is read already, if it was pushed before."""
        if self._state.position(self._paths[0]) is None:
            return await self._begin(protected, grids)
        stop = threading.Event()
        looking = asyncio.get_running_loop().run_in_executor(self._threads, first.look_ahead, stop)
        try:
            return await self._begin(protected, grids)
        finally:
            stop.set()
            await looking

    def _watch(self, index: int, protected: ProtectedSource, resources: contextlib.ExitStack) -> Watched:
        """Begin to notice changes: before anything is read, so that none can fall between."""
        source = protected.source
        grid = BlockGrid(source.size_bytes, DEFAULT_BLOCK_BYTES)
        tracker = open_tracker(source.path, source.size_bytes, grid.block_bytes)
        if isinstance(tracker, ChangeTracker):
            resources.callback(tracker.close)
        held = self._state.new_digests(protected.path, grid)
        resources.callback(held.close)
        workers = WORKERS // min(len(self._paths), VOLUMES_AT_ONCE)
        volume = VolumePush(index, source, held, self._threads, self._tally, self._progress, workers)
        return Watched(volume, tracker, mark(source.path))

    def _recall(self, index: int, volume: VolumePush, standing: VolumeStanding) -> bool:
        """Fill `held` with what the receiver is proven to hold; False if that is not known here."""
        path, grid = self._paths[index], volume.grid
        if volume.held.root().hex() == standing.root:
            return True  # the replica is all zeros, as a new map is
        position = self._state.position(path)
        if position != Position(root=standing.root, size_bytes=grid.size_bytes, block_bytes=grid.block_bytes):
            return False
        cached: DigestMap = self._state.cached_digests(path, grid)
        try:
            if cached.root().hex() != standing.root:
                return False
            for blocks in grid.pieces(1024):
                volume.held.set_run(blocks, cached.run(blocks))
        finally:
            cached.close()
        return True

    async def _commit(self, session: str, watched: list[Watched], instant: Instant) -> Point:
        roots = [one.volume.held.root().hex() for one in watched]
        request = CommitRequest(
            roots=roots,
            consistency="crash",
            completeness="scanned",
            age_seconds=time.monotonic() - instant.at,
            label=self._label,
            frozen_seconds=instant.frozen_seconds,
            sent_bytes=self._client.wire.total_bytes,
        )
        point = await self._ask_commit(f"/agent/v1/sessions/{session}/commit", request)
        if [volume.root for volume in point.volumes] != roots:
            raise RootMismatch(f"point {point.id} does not have the roots that were committed")
        return point

    async def _ask_commit(self, path: str, request: CommitRequest) -> Point:
        """A commit of many volumes may take longer than an answer: then it is asked for again, and not begun anew."""
        deadline = time.monotonic() + COMMIT_PATIENCE_SECONDS
        while True:
            try:
                return await self._client.ask(path, request, Point)
            except VolumeBusy:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(1)

    def _keep(self, watched: list[Watched]) -> None:
        for path, one in zip(self._paths, watched, strict=True):
            grid = one.volume.grid
            root = one.volume.held.root().hex()
            position = Position(root=root, size_bytes=grid.size_bytes, block_bytes=grid.block_bytes)
            self._state.keep_digests(path, one.volume.held, position)
        self._state.save_session(None)

    def _progress(self, read_bytes: int) -> None:
        self._done_bytes += read_bytes
        self._on_progress(min(self._done_bytes, self._total_bytes), self._total_bytes)
