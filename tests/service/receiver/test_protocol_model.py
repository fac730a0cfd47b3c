"""Whatever an agent does, and however the receiver dies: a point holds what was committed, or there is none."""

from __future__ import annotations

import atexit
import contextlib
import functools
import random
import shutil
import tempfile
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from agent.protocol.digests import DIGEST_BYTES, ZERO_DIGEST, DigestMap, block_digest
from agent.protocol.errors import (
    BadFrame,
    BadMessage,
    DigestMismatch,
    InternalError,
    RootMismatch,
    SessionError,
    SessionUnknown,
    UnderstudyError,
)
from agent.protocol.frames import Answer, encode_blocks, encode_offer
from agent.protocol.grid import BlockGrid
from agent.protocol.messages import BeginRequest, CommitRequest, VolumeDeclaration
from agent.protocol.pages import SUM_BYTES, Patch, differing_pages, encode_patches, page_count
from recovery.sites.contract import VolumeKey
from service.receiver.dedupe.index import ContentIndex
from service.receiver.manifest import Manifest
from service.receiver.points import PointArchive
from service.receiver.receiver import Receiver
from service.receiver.retention import Retention, superfluous
from service.receiver.seed import SEEDER
from service.store.database import Database
from service.store.points import PointStore
from tests.service.receiver.dedupe.estate import Machine
from tests.service.receiver.memory_site import Killed, MemorySite
from tests.service.receiver.pushing import SERVER

BLOCK = 8192
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
sizes = st.sampled_from([BLOCK, 5 * BLOCK + 512, 6 * BLOCK])
volumes = st.integers(0, 1)
contents = st.sampled_from([b"\0", b"\0", b"a", b"b", b"ab", b"c" * 7, b"noise"])
rarely = st.sampled_from([False, False, False, True])
ages = st.sampled_from([0, 0, 0, 0, 1, 2, 9])
"""How many sessions ago somebody speaks of; long ago is one that never was."""
some_blocks = st.sets(st.integers(0, 5), min_size=1)


def blocks_of(image: bytes) -> list[bytes]:
    return [image[at : at + BLOCK] for at in range(0, len(image), BLOCK)]


def filled(content: bytes, length: int) -> bytes:
    return random.Random(content).randbytes(length) if content == b"noise" else (content * length)[:length]


class Protocol(RuleBasedStateMachine):
    """An agent that does anything, a receiver that may die between any two requests, and what has to be true."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(prefix="understudy-test-")
        self.path = Path(self.folder.name)
        self.site = MemorySite()
        shutil.copy(empty_database(), self.path / "db.sqlite")
        self.database = Database.open(f"sqlite:///{self.path / 'db.sqlite'}")
        self.rows = FusedRows(self.database, self.site)
        self.images = [bytes(6 * BLOCK), bytes(BLOCK)]
        self.sessions: list[tuple[str, list[BlockGrid]]] = [("pt-2222222222", [BlockGrid(6 * BLOCK, BLOCK)])]
        self.points: dict[str, list[bytes]] = {}
        self.others: dict[str, dict[str, bytes]] = {}
        """Points of other servers: server id -> point id -> content."""
        self.index: ContentIndex | None = None
        self.start()

    def start(self) -> None:
        archive = PointArchive(self.site, KEY, self.path / "scratch")
        self.index = ContentIndex.open(self.path / "dedupe")
        self.receiver = Receiver(self.site, archive, self.rows, self.path / "cache", index=self.index, reserve_bytes=0)
        self.receiver.recover()

    def teardown(self) -> None:
        self.receiver.close()
        if self.index is not None:
            self.index.close()
        self.database.close()
        self.folder.cleanup()

    # --- the source ---

    @rule(volume=volumes, blocks=some_blocks, content=contents)
    def change(self, volume: int, blocks: set[int], content: bytes) -> None:
        image, grid = bytearray(self.images[volume]), BlockGrid(len(self.images[volume]), BLOCK)
        for block in (block for block in blocks if block < grid.count):
            image[grid.offset(block) : grid.offset(block) + grid.length(block)] = filled(content, grid.length(block))
        self.images[volume] = bytes(image)

    @rule(volume=volumes, size=sizes)
    def resize(self, volume: int, size: int) -> None:
        self.images[volume] = self.images[volume][:size].ljust(size, b"\0")

    # --- requests ---

    @rule(machine=st.sampled_from(["machine-1", "machine-2"]), own=st.booleans())
    def begin(self, machine: str, own: bool) -> None:
        declared = [
            VolumeDeclaration(path=f"/dev/vd{index}", size_bytes=len(image), block_bytes=BLOCK)
            for index, image in enumerate(self.images)
        ]
        request = BeginRequest(machine_id=machine, volumes=declared, supersedes=self.sessions[-1][0] if own else None)
        with expected(SessionError):
            begun = self.receiver.begin(SERVER.id, lambda: SERVER, request)
            self.sessions.append((begun.session, [BlockGrid(len(image), BLOCK) for image in self.images]))

    @rule(volume=volumes, blocks=some_blocks, content=st.none() | contents, ago=ages)
    def offer(self, volume: int, blocks: set[int], content: bytes | None, ago: int) -> None:
        """Of what the source holds, or of something else (`content`), in the newest session or in one long gone."""
        session, named, data = self._blocks(volume, blocks, content, ago)
        if not named:
            return
        body = encode_offer(named, b"".join(map(block_digest, data)))
        with expected(SessionError, BadFrame):
            answers = self.receiver.offer(SERVER.id, session, volume, body)
            for digest, answer in zip(map(block_digest, data), answers, strict=True):
                assert digest != ZERO_DIGEST or answer == Answer.HAVE

    @rule(volume=volumes, blocks=some_blocks, content=st.none() | contents, ago=ages, times=st.integers(1, 2))
    def send(self, volume: int, blocks: set[int], content: bytes | None, ago: int, times: int) -> None:
        session, named, data = self._blocks(volume, blocks, content, ago)
        body = encode_blocks(named, b"".join(map(block_digest, data)), data)
        for _ in range(times if named else 0):
            with expected(SessionError, BadFrame):
                assert self.receiver.blocks(SERVER.id, session, volume, body).written_blocks == len(named)

    @rule(volume=volumes, blocks=some_blocks, content=contents)
    def send_what_is_not_what_it_is_said_to_be(self, volume: int, blocks: set[int], content: bytes) -> None:
        session, named, data = self._blocks(volume, blocks, content, ago=0)
        if not named or not any(any(block) for block in data):
            return
        body = encode_blocks(named, ZERO_DIGEST * len(named), data)
        with pytest.raises((SessionError, BadFrame, DigestMismatch)):
            self.receiver.blocks(SERVER.id, session, volume, body)

    @rule(volume=volumes, blocks=some_blocks, cut=st.integers(1, 200), bit=st.integers(0, 1 << 16))
    def send_what_was_damaged_on_the_way(self, volume: int, blocks: set[int], cut: int, bit: int) -> None:
        session, named, data = self._blocks(volume, blocks, None, ago=0)
        if not named:
            return
        body = bytearray(encode_blocks(named, b"".join(map(block_digest, data)), data))
        body[bit // 8 % len(body)] ^= 1 << bit % 8
        for damaged in (body, body[:-cut]):
            with expected(SessionError, BadFrame, DigestMismatch):  # some bits of a zstd frame mean nothing
                self.receiver.blocks(SERVER.id, session, volume, damaged)

    @rule(volume=volumes, blocks=some_blocks, content=st.none() | contents, ago=ages, bits=st.integers(0, 3))
    def patch(self, volume: int, blocks: set[int], content: bytes | None, ago: int, bits: int) -> None:
        """As the sums say which pages differ, or just any pages: what does not come out right is not taken."""
        session, named, data = self._blocks(volume, blocks, content, ago)
        if not named:
            return
        grid = self._session(ago)[1][volume]
        with expected(SessionError, BadFrame):
            offer = encode_offer(named, b"".join(map(block_digest, data)))
            answers = self.receiver.offer(SERVER.id, session, volume, offer, with_sums=True)
            sums, patches = answers[len(named) :], []
            for index, block, answer in zip(named, data, answers, strict=False):
                pages = [page for page in range(page_count(len(block))) if bits >> page & 1]
                if answer == Answer.DIFFERS:
                    width = page_count(len(block)) * SUM_BYTES
                    pages, sums = differing_pages(block, sums[:width]) if bits == 3 else pages, sums[width:]
                patches.append(Patch.of(index, block_digest(block), memoryview(block), pages))
            assert not sums
            head, payload = encode_patches(patches, grid, 1)
            reply = self.receiver.blocks(SERVER.id, session, volume, head + bytes(payload))
            assert reply.written_blocks + len(reply.mismatched) == len(named)

    @rule(volume=volumes, ago=ages, first=st.integers(-1, 2))
    def ask_for_segments(self, volume: int, ago: int, first: int) -> None:
        """Of volumes that have one: nothing lies behind it, and nothing changes because it was asked for."""
        with expected(SessionError, BadMessage):
            told = [self.receiver.segments(SERVER.id, self._session(ago)[0], volume, first) for _ in range(2)]
            assert told[0] == told[1]
            assert len(told[0]) == (DIGEST_BYTES if first == 0 else 0)

    @rule(ago=ages)
    def commit(self, ago: int) -> None:
        """Of what the source holds now, which may or may not be what was sent."""
        self._commit(list(self.images), ago)

    @precondition(lambda self: self.points)
    @rule(ago=ages, data=st.data())
    def commit_something_else(self, ago: int, data: st.DataObject) -> None:
        """An older state of the source, or one that never was."""
        image = data.draw(st.sampled_from([*self.points.values(), [bytes(6 * BLOCK), bytes(BLOCK)]]))
        self._commit(image, ago)

    @rule(volume=volumes, blocks=some_blocks, content=contents, dies=rarely)
    def change_and_push_in_good_order(self, volume: int, blocks: set[int], content: bytes, dies: bool) -> None:
        self.change(volume=volume, blocks=blocks, content=content)
        if dies:
            self.die(scribble=True)
        self.push_in_good_order()

    @rule()
    def push_in_good_order(self) -> None:
        """There is always a way on: what an agent does that asks where things stand."""
        self.begin(machine="machine-1", own=True)
        for volume in range(len(self.images)):
            session, named, data = self._blocks(volume, set(range(6)), None, ago=0)
            digests = [block_digest(block) for block in data]
            answers = self.receiver.offer(SERVER.id, session, volume, encode_offer(named, b"".join(digests)))
            lacking = {block for block, answer in zip(named, answers, strict=True) if answer == Answer.LACKING}
            self.send(volume=volume, blocks=lacking, content=None, ago=0, times=1)
            ours = digests_of(self.images[volume]).segments(0, 1)
            assert self.receiver.segments(SERVER.id, session, volume, 0) == ours
        session = self.sessions[-1][0]
        self._commit(list(self.images), ago=0)
        assert self.points[session] == self.images

    @rule(changes=st.integers(0, 12), volume=volumes, blocks=some_blocks, content=contents)
    def die_in_the_middle(self, changes: int, volume: int, blocks: set[int], content: bytes) -> None:
        """Between any two things that a push in good order changes, at the site or in the database."""
        self.change(volume=volume, blocks=blocks, content=content)
        self.site.fuse.left = changes
        try:
            self.push_in_good_order()
        except Killed:
            self.die(scribble=False)
            session = self.sessions[-1][0]
            if session in [point.id for point in self.rows.newest_first(SERVER.id)]:  # it was to be, before it died
                self.points.setdefault(session, list(self.images))
            for ids, server_id in [(list(made), server_id) for server_id, made in self.others.items()]:
                assert [point.id for point in self.rows.newest_first(server_id)] == ids[::-1]
        self.site.fuse.left = None

    @rule(changes=st.integers(0, 8), keep=st.integers(1, 2))
    def die_in_retention(self, changes: int, keep: int) -> None:
        doomed = superfluous(list(self.points)[::-1], keep)
        self.site.fuse.left = changes
        try:
            self.retain(keep)
        except Killed:
            self.die(scribble=False)
            left = [point.id for point in self.rows.newest_first(SERVER.id)]
            for gone in [point for point in self.points if point not in left]:
                assert gone in doomed
                del self.points[gone]
        self.site.fuse.left = None

    @rule(name=st.sampled_from(["db", "mail"]), tenant=st.sampled_from(["default", "other"]), data=st.data())
    def another_server_pushes(self, name: str, tenant: str, data: st.DataObject) -> None:
        """Of the same tenant or not: what it brings may be copied by its own tenant's servers alone."""
        machine = Machine(self, f"{name}-{tenant}", tenant, BLOCK)  # type: ignore[arg-type]  # it pushes to our receiver
        image = b"".join(filled(data.draw(contents), BLOCK) for _ in range(3))
        theirs = {block for made in self._of_tenant(tenant) for block in blocks_of(made)}
        point = machine.push(image)
        self.others.setdefault(machine.id, {})[point.id] = image
        if tenant == "other":
            assert {blocks_of(image)[block] for block in machine.copied} <= theirs

    @rule(volume=volumes, blocks=some_blocks)
    def take_in_a_seed(self, volume: int, blocks: set[int]) -> None:
        """As far as it goes: what it brought stays in the working state, proven."""
        self.begin(machine=SEEDER, own=True)
        self.send(volume=volume, blocks=blocks, content=None, ago=0, times=1)
        session = self.receiver.sessions.current(SERVER.id)
        if session is not None:
            self.receiver.close_session(session, "the seed was taken in", remember=False)

    @rule()
    def fence(self) -> None:
        self.receiver.fence(SERVER.id, "it was failed over")

    @rule()
    def abandon(self) -> None:
        with expected(SessionError):
            self.receiver.abandon(SERVER.id, self.sessions[-1][0], "the agent gave up")

    # --- the receiver ---

    @rule(scribble=st.booleans())
    def die(self, scribble: bool) -> None:
        """Killed, and started again; perhaps its caches do not survive that."""
        self.receiver.dedupe.close()
        if self.index is not None:
            self.index.close()
        self.site.crash()
        if scribble:
            for cache in (self.path / "cache").rglob("*.digests"):
                cache.write_bytes(bytes(len(cache.read_bytes())))
        self.start()

    @rule(volume=volumes, blocks=some_blocks, content=contents)
    def die_in_a_push_of_what_is_undone(self, volume: int, blocks: set[int], content: bytes) -> None:
        """The working state then holds what neither the newest point nor the source does."""
        before = list(self.images)
        self.change(volume=volume, blocks=blocks, content=content)
        self.begin(machine="machine-1", own=True)
        self.send(volume=volume, blocks=blocks, content=None, ago=0, times=1)
        self.die(scribble=False)
        self.images = before
        self.push_in_good_order()

    @rule(keep=st.integers(1, 3))
    def retain(self, keep: int) -> None:
        for gone in Retention(self.receiver, self.rows, NoRuns(), keep).retain(SERVER.id):
            del self.points[gone]

    # --- what has to be true ---

    @invariant()
    def points_are_what_was_committed_and_no_others_are_there(self) -> None:
        assert [point.id for point in self.rows.newest_first(SERVER.id)] == list(self.points)[::-1]
        for point_id, images in self.points.items():
            manifest = self.receiver.archive.manifest(SERVER.id, point_id)
            for index, image in enumerate(images):
                held = self.site.open_snapshot(VolumeKey(SERVER.id, index), point_id)
                assert held.read(0, held.size_bytes) == image
                digests = self.receiver.archive.digests(manifest, index)
                assert digests.root() == digests_of(image).root()
                digests.close()

    @invariant()
    def other_servers_points_are_theirs(self) -> None:
        for server_id, made in self.others.items():
            assert [point.id for point in self.rows.newest_first(server_id)] == list(made)[::-1]
            for point_id, image in made.items():
                held = self.site.open_snapshot(VolumeKey(server_id, 0), point_id)
                assert held.read(0, held.size_bytes) == image

    # --- helpers ---

    def _of_tenant(self, tenant: str) -> list[bytes]:
        """What other servers of the tenant have in points."""
        return [made for server, points in self.others.items() if server.endswith(tenant) for made in points.values()]

    def _session(self, ago: int) -> tuple[str, list[BlockGrid]]:
        return self.sessions[max(0, len(self.sessions) - 1 - ago)]

    def _blocks(
        self, volume: int, blocks: set[int], content: bytes | None, ago: int
    ) -> tuple[str, list[int], list[bytes]]:
        """(session, the blocks that there are in it, what is said of them)."""
        session, grids = self._session(ago)
        if volume >= len(grids):
            return session, [], []
        grid, image = grids[volume], self.images[volume]
        named = sorted(block for block in blocks if block < grid.count)
        if content is not None:
            return session, named, [filled(content, grid.length(block)) for block in named]
        held = image[: grid.size_bytes].ljust(grid.size_bytes, b"\0")
        return session, named, [held[grid.offset(block) :][: grid.length(block)] for block in named]

    def _commit(self, images: list[bytes], ago: int) -> None:
        session = self._session(ago)[0]
        request = CommitRequest(
            roots=[digests_of(image).root().hex() for image in images],
            consistency="crash",
            completeness="scanned",
            age_seconds=0.0,
        )
        with expected(SessionUnknown, RootMismatch, SessionError):
            point = self.receiver.commit(SERVER.id, session, lambda machine: SERVER, request)
            if point.id not in self.points:  # a commit may be repeated, and gives the same
                assert point.id == session
                self.points[point.id] = list(images)


class FusedRows(PointStore):
    """Rows whose changes burn the site's fuse as well."""

    def __init__(self, database: Database, site: MemorySite) -> None:
        super().__init__(database)
        self._fuse = site.fuse

    def add(self, manifest: Manifest) -> None:
        self._fuse.burn()
        super().add(manifest)

    def restore(self, manifests: list[Manifest]) -> None:
        self._fuse.burn()
        super().restore(manifests)

    def remove(self, point_id: str) -> None:
        self._fuse.burn()
        super().remove(point_id)


class NoRuns:
    """Nothing holds a point."""

    def claim(self, point_id: str) -> contextlib.AbstractContextManager[str | None]:
        return contextlib.nullcontext()


@functools.cache
def empty_database() -> Path:
    """Made once: its migrations take longer than all the rest of an example."""
    folder = tempfile.mkdtemp(prefix="understudy-test-")
    atexit.register(shutil.rmtree, folder)
    path = Path(folder) / "db.sqlite"
    Database.open(f"sqlite:///{path}").close()
    return path


class expected:  # noqa: N801  # reads as `with expected(SessionError)`
    """These errors are answers as well; a bug of ours never is."""

    def __init__(self, *kinds: type[UnderstudyError]) -> None:
        self._kinds = kinds

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> bool:
        return isinstance(error, self._kinds) and not isinstance(error, InternalError)


def digests_of(image: bytes) -> DigestMap:
    digests = DigestMap(BlockGrid(len(image), BLOCK))
    for block in range(digests.grid.count):
        offset = digests.grid.offset(block)
        digests[block] = block_digest(image[offset : offset + digests.grid.length(block)])
    return digests


@pytest.mark.parametrize(("examples", "steps"), [(15, 30), pytest.param(400, 60, marks=pytest.mark.long)])
def test_a_point_exists_only_if_it_holds_what_was_committed(examples: int, steps: int) -> None:
    run_state_machine_as_test(
        Protocol,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=examples < 100,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
