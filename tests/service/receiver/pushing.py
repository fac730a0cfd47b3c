"""A receiver over the real local site and a real SQLite database, and a pusher that speaks the protocol to it."""

from __future__ import annotations

import contextlib
import random
import subprocess
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agent.protocol.digests import DigestMap, block_digest
from agent.protocol.errors import StorageError
from agent.protocol.frames import Answer, encode_blocks, encode_offer
from agent.protocol.grid import BlockGrid
from agent.protocol.messages import BeginReply, BeginRequest, CommitRequest, Point, VolumeDeclaration
from recovery.control import Server
from recovery.sites.contract import VolumeKey
from recovery.sites.local import LocalSite
from service.receiver.manifest import Manifest
from service.receiver.points import PointArchive
from service.receiver.pull import Answer as PullAnswer
from service.receiver.receiver import Receiver
from service.receiver.retention import Retention
from service.store.database import Database
from service.store.points import PointStore
from service.store.runs import RunRows

BLOCK = 65536
SERVER = Server(
    id="srv-web01",
    tenant="default",
    name="web01",
    state="protected",
    epoch=1,
    owner="machine-1",
    last_seen_seconds=None,
)


class Bench:
    """Everything of a receiver that survives a restart, and the receiver itself."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = Ed25519PrivateKey.generate()
        self.start()

    def start(self) -> None:
        self.site = LocalSite(self.folder / "site")
        database = Database.open(f"sqlite:///{self.folder / 'db.sqlite'}")
        self.rows = PointStore(database)
        self.runs = RunRows(database)
        self.archive = PointArchive(self.site, self.key, self.folder / "scratch")
        self.receiver = Receiver(self.site, self.archive, self.rows, self.folder / "cache", reserve_bytes=0)
        self.receiver.recover()

    def restart(self) -> None:
        """As after SIGKILL: nothing that lived in memory is told that the end has come."""
        self.site.close()
        self.start()

    def stop(self) -> None:
        self.receiver.close()
        self.site.close()

    def retain(self, keep: int) -> list[str]:
        """One look of retention at the server; returns the points removed."""
        return Retention(self.receiver, self.rows, self.runs.pins, keep).retain(SERVER.id)

    def verify(self, manifest: Manifest) -> int:
        """Read a point back and compare every block, as plainly as can be. Returns the bytes read."""
        read_bytes = 0
        for index in range(len(manifest.point.volumes)):
            digests = self.archive.digests(manifest, index)
            with contextlib.closing(digests), contextlib.closing(self.archive.open(manifest, index)) as io:
                for block in range(digests.grid.count):
                    data = io.read(digests.grid.offset(block), digests.grid.length(block))
                    if block_digest(data) != digests[block]:
                        raise StorageError(f"block {block} is damaged")
                    read_bytes += len(data)
        return read_bytes

    def content(self, point_id: str, index: int = 0) -> bytes:
        """A point's volume as stock qemu-img sees it."""
        out = self.folder / "out.raw"
        location = self.site.snapshot_location(VolumeKey(SERVER.id, index), point_id)
        subprocess.run(["qemu-img", "convert", "-O", "raw", location, str(out)], check=True)
        return out.read_bytes()


class Pusher:
    """An agent's end of the protocol, over plain bytes instead of disks."""

    def __init__(self, bench: Bench, machine_id: str = "machine-1") -> None:
        self.bench = bench
        self.machine_id = machine_id

    def begin(self, *images: bytes, supersedes: str | None = None) -> BeginReply:
        volumes = [
            VolumeDeclaration(path=f"/dev/vd{index}", size_bytes=len(image), block_bytes=BLOCK)
            for index, image in enumerate(images)
        ]
        return self.bench.receiver.begin(
            SERVER.id, lambda: SERVER, BeginRequest(machine_id=self.machine_id, volumes=volumes, supersedes=supersedes)
        )

    def offer(self, session: str, image: bytes, volume: int = 0) -> list[int]:
        """Offer every block; returns the indices that are lacking."""
        grid = BlockGrid(len(image), BLOCK)
        indices = list(range(grid.count))
        answers = self.bench.receiver.offer(
            SERVER.id, session, volume, encode_offer(indices, digests_of(image).run(range(grid.count)))
        )
        return [index for index, answer in zip(indices, answers, strict=True) if answer == Answer.LACKING]

    def send(self, session: str, image: bytes, indices: list[int], volume: int = 0) -> None:
        for at in range(0, len(indices), 32):
            part = indices[at : at + 32]
            contents = [image[index * BLOCK : (index + 1) * BLOCK] for index in part]
            digests = b"".join(map(block_digest, contents))
            self.bench.receiver.blocks(SERVER.id, session, volume, encode_blocks(part, digests, contents))

    def commit(self, session: str, *images: bytes) -> Point:
        roots = [digests_of(image).root().hex() for image in images]
        return self.bench.receiver.commit(
            SERVER.id,
            session,
            lambda machine_id: SERVER,
            CommitRequest(roots=roots, consistency="crash", completeness="scanned", age_seconds=1.5),
        )

    def push(self, *images: bytes) -> Point:
        begun = self.begin(*images)
        for volume, image in enumerate(images):
            self.send(begun.session, image, self.offer(begun.session, image, volume), volume)
        return self.commit(begun.session, *images)


def answer_of(answer: PullAnswer) -> bytes:
    """What is answered to a pull, as it travels."""
    return b"".join(answer.body())


def digests_of(image: bytes) -> DigestMap:
    digests = DigestMap(BlockGrid(len(image), BLOCK))
    for index in range(digests.grid.count):
        digests[index] = block_digest(image[index * BLOCK : (index + 1) * BLOCK])
    return digests


def make_image(blocks: int, seed: int, tail_bytes: int = 0) -> bytes:
    """Some blocks random, some repetitive, some zero."""
    rng = random.Random(seed)
    kinds = [rng.randbytes, lambda n: bytes(n), lambda n: b"understudy" * (n // 10) + b"x" * (n % 10)]
    return b"".join(rng.choice(kinds)(BLOCK) for _ in range(blocks)) + rng.randbytes(tail_bytes)


def changed(image: bytes, seed: int, blocks: int = 3) -> bytes:
    rng = random.Random(seed)
    new = bytearray(image)
    for _ in range(blocks):
        at = rng.randrange(len(image) // BLOCK) * BLOCK
        new[at : at + BLOCK] = rng.choice([bytes(BLOCK), rng.randbytes(BLOCK)])
    return bytes(new)
