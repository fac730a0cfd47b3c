"""Standing: working states opened with a digest map that is right, whatever happened to them before.

What nobody can tell any more (what a push brought before a crash; everything, where a point's documents are damaged) is
read back, in a thread of its own: that takes as long as the disk is large, so agents are told how far it is, ask
again, and find it further on. It needs no server's lock, so a failover never waits for it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from pathlib import Path

from agent.protocol.digests import DIGEST_BYTES, SEGMENT_BLOCKS, DigestMap, block_digest
from agent.protocol.errors import InternalError, NotFound, StorageError, StorageFull, UnderstudyError, VolumeBusy
from agent.protocol.grid import BlockGrid
from recovery.sites.contract import Extent, Site, VolumeKey
from service.receiver.digest_caches import new_map, open_map
from service.receiver.head import Head
from service.receiver.points import PointArchive
from service.receiver.verify.doubts import Doubts

PATIENCE_SECONDS = 10.0
"""How long an agent's request waits for a working state to be read back."""
_READ_BLOCKS = 64

log = logging.getLogger(__name__)


class Standing:
    """Callers hold the server's lock. `folder` is for the digest maps: caches, made anew from the points."""

    def __init__(self, site: Site, archive: PointArchive, folder: Path) -> None:
        self._site = site
        self._archive = archive
        self._folder = folder
        self._damaged = Doubts(site)
        self._lock = threading.Lock()
        self._proven: dict[VolumeKey, BlockGrid] = {}
        """Working states whose map in the cache is right, since this process has read or closed them in good order."""
        self._reading: dict[VolumeKey, _ReadBack] = {}

    def open(self, server_id: str, grids: list[BlockGrid], *, however_long: bool = False) -> list[Head]:
        """Every volume's working state, on top of its newest snapshot, made to fit its grid.

        Raises VolumeBusy where reading back takes longer than an agent waits, and goes on; unless it may take
        `however_long`. Raises StorageError, StorageFull."""
        volumes = [(VolumeKey(server_id, index), grid) for index, grid in enumerate(grids)]
        for key, grid in volumes:
            self._prepare(key, grid)
        deadline = None if however_long else time.monotonic() + PATIENCE_SECONDS
        for key, grid in volumes:
            self._await(key, grid, deadline)
        heads: list[Head] = []
        try:
            for key, grid in volumes:
                with self._lock:
                    del self._proven[key]  # nor is it if it cannot be opened: the next one looks what is wrong
                heads.append(Head.reopen(self._site, key, grid, self._cache(key)))
        except BaseException:
            for head in heads:
                head.close()
                self.keep(head)
            raise
        return heads

    def keep(self, head: Head) -> None:
        """The head was closed, and its map is right: nothing needs to be read back."""
        with self._lock:
            self._proven[head.key] = head.grid

    def close(self) -> None:
        """The service stops."""
        with self._lock:
            reading = list(self._reading.values())
        for read_back in reading:
            read_back.stop()

    def _prepare(self, key: VolumeKey, grid: BlockGrid) -> None:
        """See to it that the volume's map is right, or on its way to be."""
        with self._lock:
            if key in self._reading:
                return
            proven = self._proven.pop(key, None)
        doubts = self._damaged.of(key)
        if proven != grid or not self._site.volume_exists(key):
            self._site.make_volume(key, grid.size_bytes)
            doubts += [extent for extent in self._site.changes(key) if extent.offset < grid.size_bytes]
            doubts += self._begin_map(key, grid)
        if doubts:
            with self._lock:
                self._reading[key] = _ReadBack(self._site, key, grid, self._cache(key), doubts)
            return
        with self._lock:
            self._proven[key] = grid

    def _await(self, key: VolumeKey, grid: BlockGrid, deadline: float | None) -> None:
        with self._lock:
            read_back = self._reading.get(key)
        if read_back is None:
            return
        if not read_back.wait(deadline):
            raise VolumeBusy(
                f"the receiver reads back what it holds of volume {key.index}: {read_back.progress()}",
                "it goes on by itself; push again later, and nothing is begun anew",
            )
        with self._lock:
            del self._reading[key]
            if read_back.error is None:
                self._proven[key] = read_back.grid
        if read_back.error is not None:
            raise read_back.error
        if read_back.grid != grid:  # the source was resized meanwhile
            self._prepare(key, grid)
            self._await(key, grid, deadline)

    def _begin_map(self, key: VolumeKey, grid: BlockGrid) -> list[Extent]:
        """Make the map in the cache say what the newest snapshot holds; returns where it cannot.

        Usually that is the server's newest point; an older one if the volume was not protected for a while."""
        cache = self._cache(key)
        snapshots = self._site.snapshots(key)
        if not snapshots:
            new_map(cache, grid).close()
            return []
        try:
            manifest = self._archive.manifest(key.server_id, snapshots[-1])
            volume = manifest.volume(key.index)
            if _is_map_of(cache, grid, volume.root):
                return []
            base = self._archive.digests(manifest, key.index)
        except StorageFull:
            raise
        except (NotFound, StorageError, IndexError) as error:
            log.warning("volume %d of %s is read back whole: %s", key.index, key.server_id, error)
            new_map(cache, grid).close()
            return [Extent(0, grid.size_bytes)]
        with contextlib.closing(base), contextlib.closing(new_map(cache, grid)) as digests:
            return _take_over(digests, base)

    def _cache(self, key: VolumeKey) -> Path:
        return self._folder / key.server_id / f"{key.index}.digests"


class _ReadBack:
    """Reads parts of a working state and enters their digests into its map, in a thread."""

    def __init__(self, site: Site, key: VolumeKey, grid: BlockGrid, cache: Path, doubts: list[Extent]) -> None:
        self.grid = grid
        self.error: UnderstudyError | None = None
        self._site = site
        self._key = key
        self._cache = cache
        self._doubts = doubts
        self._total_bytes = min(grid.size_bytes, sum(extent.length for extent in doubts))
        self._done_bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"read back {key.server_id}.{key.index}", daemon=True)
        self._thread.start()

    def wait(self, deadline: float | None) -> bool:
        """Is it over?"""
        self._thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
        return not self._thread.is_alive()

    def progress(self) -> str:
        return f"{min(self._done_bytes, self._total_bytes) >> 20} of {self._total_bytes >> 20} MiB"

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._read()
        except UnderstudyError as error:
            self.error = error
        except Exception:
            log.exception("volume %d of %s could not be read back", self._key.index, self._key.server_id)
            self.error = InternalError(f"volume {self._key.index} could not be read back")

    def _read(self) -> None:
        with (
            contextlib.closing(open_map(self._cache, self.grid)) as digests,
            contextlib.closing(self._site.open_volume(self._key)) as io,
        ):
            ranges = ((extent.offset, extent.length) for extent in self._doubts)
            for blocks in self.grid.covering(ranges, _READ_BLOCKS):
                if self._stop.is_set():
                    raise StorageError("the service was stopped while it read a volume back")
                offset, length = self.grid.span(blocks)
                data = memoryview(io.read(offset, length))
                for index in blocks:
                    at = self.grid.offset(index) - offset
                    digests[index] = block_digest(data[at : at + self.grid.length(index)])
                self._done_bytes += length


def _take_over(digests: DigestMap, base: DigestMap) -> list[Extent]:
    """Begin with a point's digests; returns what they cannot tell about a volume of another size or grain."""
    if base.grid.block_bytes != digests.grid.block_bytes:
        return [Extent(0, digests.grid.size_bytes)]
    shared = min(base.grid, digests.grid, key=lambda grid: grid.count)
    for blocks in shared.pieces(SEGMENT_BLOCKS):
        digests.set_run(blocks, base.run(blocks))
    if base.grid == digests.grid:
        return []
    edge = shared.count - 1
    return [Extent(digests.grid.offset(edge), digests.grid.length(edge))]


def _is_map_of(cache: Path, grid: BlockGrid, root: str) -> bool:
    """Does the file hold the map that has this root? It does after a commit, and nothing needs to be fetched."""
    if not cache.exists() or cache.stat().st_size != grid.count * DIGEST_BYTES:
        return False
    with contextlib.closing(open_map(cache, grid)) as digests:
        return digests.root().hex() == root
