"""Several servers of several tenants, over one receiver with a dedupe index, the real local site and real SQLite."""

from __future__ import annotations

import random
import subprocess
from dataclasses import replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agent.protocol.digests import ZERO_DIGEST, DigestMap, block_digest
from agent.protocol.frames import Answer, encode_blocks, encode_offer
from agent.protocol.grid import BlockGrid
from agent.protocol.messages import BeginReply, BeginRequest, CommitRequest, Point, VolumeDeclaration
from recovery.sites.contract import VolumeKey
from recovery.sites.local import LocalSite
from service.receiver.dedupe.index import ContentIndex
from service.receiver.points import PointArchive
from service.receiver.receiver import Receiver
from service.store.database import Database
from service.store.points import PointStore
from tests.service.receiver.pushing import BLOCK, SERVER


class Estate:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.site = LocalSite(folder / "site")
        self.database = Database.open(f"sqlite:///{folder / 'db.sqlite'}")
        self.rows = PointStore(self.database)
        self.archive = PointArchive(self.site, Ed25519PrivateKey.generate())
        index = ContentIndex.open(folder / "dedupe")
        assert index is not None
        self.index = index
        self.receiver = Receiver(self.site, self.archive, self.rows, folder / "cache", index=index, reserve_bytes=0)

    def stop(self) -> None:
        self.receiver.close()
        self.index.close()
        self.site.close()
        self.database.close()

    def content(self, point: Point, server_id: str, volume: int = 0) -> bytes:
        """A point's volume as stock qemu-img sees it."""
        out = self.folder / f"{point.id}.raw"
        location = self.site.snapshot_location(VolumeKey(server_id, volume), point.id)
        subprocess.run(["qemu-img", "convert", "-O", "raw", location, str(out)], check=True)
        try:
            return out.read_bytes()
        finally:
            out.unlink()


class Machine:
    """A server's agent, over plain bytes instead of disks. After a push `sent` and `copied` are its blocks."""

    def __init__(self, estate: Estate, name: str, tenant: str = "default", block_bytes: int = BLOCK) -> None:
        self.estate = estate
        self.block_bytes = block_bytes
        self.server = replace(SERVER, id=f"srv-{name}", name=name, tenant=tenant)
        self.id = self.server.id
        self.sent: list[int] = []
        self.copied: list[int] = []

    def begin(self, *images: bytes) -> BeginReply:
        volumes = [
            VolumeDeclaration(path=f"/dev/vd{index}", size_bytes=len(image), block_bytes=self.block_bytes)
            for index, image in enumerate(images)
        ]
        request = BeginRequest(machine_id=f"machine of {self.id}", volumes=volumes, supersedes=None)
        return self.estate.receiver.begin(self.id, lambda: self.server, request)

    def bring(self, session: str, image: bytes, volume: int = 0, frame_blocks: int = 16) -> None:
        """Offer all, a few blocks at a time, and send what is lacking."""
        grid = BlockGrid(len(image), self.block_bytes)
        digests = self.digests_of(image)
        self.sent, self.copied = [], []
        for piece in grid.pieces(frame_blocks):
            answers = self.offer(session, volume, piece, digests)
            self.copied += [index for index, answer in zip(piece, answers, strict=True) if answer == Answer.COPIED]
            lacking = [index for index, answer in zip(piece, answers, strict=True) if answer == Answer.LACKING]
            if lacking:
                contents = [image[index * self.block_bytes :][: self.block_bytes] for index in lacking]
                body = encode_blocks(lacking, b"".join(map(block_digest, contents)), contents)
                self.estate.receiver.blocks(self.id, session, volume, body)
            self.sent += lacking

    def offer(self, session: str, volume: int, piece: range, digests: DigestMap) -> bytes:
        return self.estate.receiver.offer(self.id, session, volume, encode_offer(list(piece), digests.run(piece)))

    def commit(self, session: str, *images: bytes) -> Point:
        return self.estate.receiver.commit(
            self.id,
            session,
            lambda machine_id: self.server,
            CommitRequest(
                roots=[self.digests_of(image).root().hex() for image in images],
                consistency="crash",
                completeness="scanned",
                age_seconds=0.0,
            ),
        )

    def push(self, image: bytes) -> Point:
        session = self.begin(image).session
        self.bring(session, image)
        return self.commit(session, image)

    def digests_of(self, image: bytes) -> DigestMap:
        digests = DigestMap(BlockGrid(len(image), self.block_bytes))
        for index in range(digests.grid.count):
            digests[index] = block_digest(image[index * self.block_bytes :][: self.block_bytes])
        return digests

    def data_blocks(self, image: bytes) -> list[int]:
        digests = self.digests_of(image)
        return [index for index in range(digests.grid.count) if digests[index] != ZERO_DIGEST]


def make_image(blocks: int, seed: int, tail_bytes: int = 0) -> bytes:
    """No two blocks alike, but for zeros here and there."""
    rng = random.Random(seed)
    return b"".join(bytes(BLOCK) if rng.random() < 0.2 else rng.randbytes(BLOCK) for _ in range(blocks)) + (
        rng.randbytes(tail_bytes)
    )
