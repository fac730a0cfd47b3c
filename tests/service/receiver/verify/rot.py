"""A verifier over a receiver's bench, and bits that flip by themselves."""

from __future__ import annotations

import os
from pathlib import Path

from recovery.sites.contract import VolumeKey
from service.receiver.pull import PointReader
from service.receiver.verify.http import alone_with
from service.receiver.verify.records import Records
from service.receiver.verify.verifier import Verifier
from tests.service.receiver.pushing import SERVER, Bench

KEY = VolumeKey(SERVER.id, 0)


def verifier_of(bench: Bench, *servers: str) -> Verifier:
    """`servers`: ids of others of the tenant."""
    records = Records(
        bench.site,
        bench.archive,
        bench.rows,
        bench.key.public_key(),
        lambda tenant: {SERVER.id, *servers} if tenant == SERVER.tenant else set(),
    )
    alone = alone_with(bench.receiver, PointReader(bench.archive))
    return Verifier(bench.site, bench.archive, records, bench.folder / "scratch", alone)


def flip(path: Path, at: int, bit: int = 0) -> None:
    """Turn one bit of a file over."""
    mode = path.stat().st_mode
    path.chmod(0o600)
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << bit]))
        os.fsync(file.fileno())
    path.chmod(mode)


def file_of(bench: Bench, point_id: str) -> Path:
    return Path(bench.site.snapshot_location(KEY, point_id))


def document_of(bench: Bench, name: str) -> Path:
    return bench.folder / "site" / SERVER.id / "documents" / name


def place_of(path: Path, content: bytes) -> int:
    """Where in a qcow2 file a block lies."""
    at = path.read_bytes().find(content)
    assert at >= 0, "the block is not in this file"
    return at
