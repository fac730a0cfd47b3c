"""A recovery point checked with its signed manifest and the public key alone: no service, no database, no network."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from agent.protocol.digests import DigestMap, block_digest
from agent.protocol.errors import StorageError, UsageError
from agent.protocol.grid import BlockGrid
from recovery.sites.local import qcow2
from recovery.sites.local.snapshot_io import SnapshotIO
from service.files import read_named
from service.receiver.manifest import Manifest, unsealed

MAX_MANIFEST_BYTES = 4 << 20
READ_BLOCKS = 64
_QCOW2 = b"QFI\xfb"

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class OfflineCheck:
    """What was proven: the signature over the manifest, and the volumes that were given."""

    manifest: Manifest
    volumes: list[int]

    def to_json(self) -> dict[str, Any]:
        point = self.manifest.point
        return {
            "point": point.id,
            "server": point.server,
            "taken_at": point.taken_at,
            "root": point.root,
            "signature": "valid",
            "volumes_verified": self.volumes,
            "volumes": len(point.volumes),
        }

    def text(self) -> str:
        point = self.manifest.point
        lines = [
            f"{point.id} of {point.server}, taken at {point.taken_at}: the signature is valid",
            f"  root {point.root}",
        ]
        for index, volume in enumerate(point.volumes):
            proven = "every block proven" if index in self.volumes else "not looked at: --volume"
            lines.append(f"  volume {index}, {volume.path}, root {volume.root[:16]}…: {proven}")
        return "\n".join(lines)


def check_offline(manifest: str, key: str, images: dict[int, str], progress: Progress) -> OfflineCheck:
    """Check a manifest's signature, and images (by volume number) against its roots.

    Raises StorageError (altered or damaged), UsageError (a file cannot be read as what it should be)."""
    found = unsealed(read_named(manifest, MAX_MANIFEST_BYTES), read_public_key(key))
    for index, image in sorted(images.items()):
        if index >= len(found.point.volumes):
            raise UsageError(f"{found.point.id} has no volume {index}", f"it has {len(found.point.volumes)}")
        _check_volume(found, index, Path(image), progress)
    return OfflineCheck(found, sorted(images))


def _check_volume(manifest: Manifest, index: int, image: Path, progress: Progress) -> None:
    volume = manifest.volume(index)
    grid = BlockGrid(volume.size_bytes, volume.block_bytes)
    with _opened(image) as (size_bytes, read_into):
        if size_bytes != grid.size_bytes:
            raise StorageError(
                f"{image} has {size_bytes} bytes, and volume {index} of {manifest.point.id} has {grid.size_bytes}",
                "name the image of this volume, and of this point",
            )
        digests = DigestMap(grid)
        buffer = memoryview(bytearray(READ_BLOCKS * grid.block_bytes))
        for blocks in grid.pieces(READ_BLOCKS):
            offset, length = grid.span(blocks)
            read_into(offset, buffer[:length])
            for block in blocks:
                at = grid.offset(block) - offset
                digests[block] = block_digest(buffer[at : at + grid.length(block)])
            progress(offset + length, grid.size_bytes)
    if digests.root().hex() != volume.root:
        raise StorageError(
            f"{image} is not volume {index} of {manifest.point.id}: its root is {digests.root().hex()[:16]}…, "
            f"and {volume.root[:16]}… was signed",
            "it is damaged or another point's: understudy verify names the blocks",
        )


@contextlib.contextmanager
def _opened(image: Path) -> Iterator[tuple[int, Callable[[int, memoryview], None]]]:
    """Its size in bytes, and how to read it."""
    try:
        with open(image, "rb") as file:
            if file.read(len(_QCOW2)) == _QCOW2:
                path = image.resolve()
                size_bytes = qcow2.read_header(path).size_bytes
                io = SnapshotIO(qcow2.layers(path), size_bytes, on_close=lambda: None)
                with contextlib.closing(io):
                    yield size_bytes, io.read_into
            else:
                yield file.seek(0, os.SEEK_END), _plain_reader(file.fileno(), image)
    except OSError as error:
        raise UsageError(f"{image} cannot be read: {error.strerror}", "name a raw or qcow2 file") from None


def _plain_reader(descriptor: int, image: Path) -> Callable[[int, memoryview], None]:
    def read_into(offset: int, into: memoryview) -> None:
        while into:
            count = os.preadv(descriptor, [into], offset)
            if not count:
                raise StorageError(f"{image} ends at byte {offset}", "it was cut meanwhile: read it again")
            offset, into = offset + count, into[count:]

    return read_into


def read_public_key(path: str) -> Ed25519PublicKey:
    """The Ed25519 key in a PEM file. Raises UsageError."""
    try:
        key = load_pem_public_key(read_named(path, MAX_MANIFEST_BYTES))
    except (ValueError, UnsupportedAlgorithm):
        raise UsageError(f"{path} is no public key in PEM", "name the service's pki/sign.pub") from None
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(f"the key in {path} is not an Ed25519 key", "name the service's pki/sign.pub")
    return key
