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

from agent.protocol.digests import ZERO_DIGEST, DigestMap, block_digest
from agent.protocol.errors import (
    BadFrame,
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
from recovery.sites.contract import VolumeKey
from service.receiver.dedupe.index import ContentIndex
from service.receiver.points import PointArchive
from service.receiver.receiver import Receiver
from service.receiver.retention import Retention
from service.store.database import Database
from service.store.points import PointStore
from tests.service.receiver.memory_site import MemorySite
from tests.service.receiver.pushing import SERVER

BLOCK = 4096
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
sizes = st.sampled_from([BLOCK, 5 * BLOCK + 512, 6 * BLOCK])
volumes = st.integers(0, 1)
contents = st.sampled_from([b"\0", b"\0", b"a", b"b", b"ab", b"c" * 7, b"noise"])
rarely = st.sampled_from([False, False, False, True])
some_blocks = st.sets(st.integers(0, 5), min_size=1)


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
        self.rows = PointStore(self.database)
        self.images = [bytes(6 * BLOCK), bytes(BLOCK)]
        self.sessions: list[tuple[str, list[BlockGrid]]] = [("pt-2222222222", [BlockGrid(6 * BLOCK, BLOCK)])]
        self.points: dict[str, list[bytes]] = {}
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

    @rule(volume=volumes, blocks=some_blocks, content=st.none() | contents, late=rarely)
    def offer(self, volume: int, blocks: set[int], content: bytes | None, late: bool) -> None:
        """Of what the source holds, or of something else (`content`), in the newest session or in one long gone."""
        session, named, data = self._blocks(volume, blocks, content, late)
        if not named:
            return
        body = encode_offer(named, b"".join(map(block_digest, data)))
        with expected(SessionError, BadFrame):
            answers = self.receiver.offer(SERVER.id, session, volume, body)
            for digest, answer in zip(map(block_digest, data), answers, strict=True):
                assert digest != ZERO_DIGEST or answer == Answer.HAVE

    @rule(volume=volumes, blocks=some_blocks, content=st.none() | contents, late=rarely, times=st.integers(1, 2))
    def send(self, volume: int, blocks: set[int], content: bytes | None, late: bool, times: int) -> None:
        session, named, data = self._blocks(volume, blocks, content, late)
        body = encode_blocks(named, b"".join(map(block_digest, data)), data)
        for _ in range(times if named else 0):
            with expected(SessionError, BadFrame):
                assert self.receiver.blocks(SERVER.id, session, volume, body).written_blocks == len(named)

    @rule(volume=volumes, blocks=some_blocks, content=contents)
    def send_what_is_not_what_it_is_said_to_be(self, volume: int, blocks: set[int], content: bytes) -> None:
        session, named, data = self._blocks(volume, blocks, content, late=False)
        if not named or not any(any(block) for block in data):
            return
        body = encode_blocks(named, ZERO_DIGEST * len(named), data)
        with pytest.raises((SessionError, BadFrame, DigestMismatch)):
            self.receiver.blocks(SERVER.id, session, volume, body)

    @rule(volume=volumes, blocks=some_blocks, cut=st.integers(1, 200), bit=st.integers(0, 1 << 16))
    def send_what_was_damaged_on_the_way(self, volume: int, blocks: set[int], cut: int, bit: int) -> None:
        session, named, data = self._blocks(volume, blocks, None, late=False)
        if not named:
            return
        body = bytearray(encode_blocks(named, b"".join(map(block_digest, data)), data))
        body[bit // 8 % len(body)] ^= 1 << bit % 8
        for damaged in (body, body[:-cut]):
            with expected(SessionError, BadFrame, DigestMismatch):  # some bits of a zstd frame mean nothing
                self.receiver.blocks(SERVER.id, session, volume, damaged)

    @rule(late=rarely)
    def commit(self, late: bool) -> None:
        """Of what the source holds now, which may or may not be what was sent."""
        self._commit(list(self.images), late)

    @precondition(lambda self: self.points)
    @rule(late=rarely, data=st.data())
    def commit_something_else(self, late: bool, data: st.DataObject) -> None:
        """An older state of the source, or one that never was."""
        image = data.draw(st.sampled_from([*self.points.values(), [bytes(6 * BLOCK), bytes(BLOCK)]]))
        self._commit(image, late)

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
            session, named, data = self._blocks(volume, set(range(6)), None, late=False)
            digests = [block_digest(block) for block in data]
            answers = self.receiver.offer(SERVER.id, session, volume, encode_offer(named, b"".join(digests)))
            lacking = {block for block, answer in zip(named, answers, strict=True) if answer == Answer.LACKING}
            self.send(volume=volume, blocks=lacking, content=None, late=False, times=1)
        session = self.sessions[-1][0]
        self._commit(list(self.images), late=False)
        assert self.points[session] == self.images

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
        self.send(volume=volume, blocks=blocks, content=None, late=False, times=1)
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

    # --- helpers ---

    def _blocks(
        self, volume: int, blocks: set[int], content: bytes | None, late: bool
    ) -> tuple[str, list[int], list[bytes]]:
        """(session, the blocks that there are in it, what is said of them)."""
        session, grids = self.sessions[0 if late else -1]
        if volume >= len(grids):
            return session, [], []
        grid, image = grids[volume], self.images[volume]
        named = sorted(block for block in blocks if block < grid.count)
        if content is not None:
            return session, named, [filled(content, grid.length(block)) for block in named]
        held = image[: grid.size_bytes].ljust(grid.size_bytes, b"\0")
        return session, named, [held[grid.offset(block) :][: grid.length(block)] for block in named]

    def _commit(self, images: list[bytes], late: bool) -> None:
        session = self.sessions[0 if late else -1][0]
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
