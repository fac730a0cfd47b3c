"""The manifest of a recovery point: what makes a point describe itself, signed (service.signed) so that it can be
checked offline."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from blake3 import blake3
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from agent.protocol.errors import BadMessage, StorageError
from agent.protocol.messages import Point, PointVolume, from_json, to_json
from service.signed import proven, signed

FORMAT = "understudy-point-1"
_POINT_CONTEXT = "understudy 2026 point v1"


def point_root(volume_roots: list[bytes]) -> bytes:
    """One root over all volumes of a point, in boot order, 32 bytes."""
    return blake3(b"".join(volume_roots), derive_key_context=_POINT_CONTEXT).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A point and where it belongs. `server_id` and `tenant` are what the database would know.

    `digests` names, for each volume, the points whose digest documents make its map, oldest first (see
    digest_documents). The database does not know it."""

    point: Point
    server_id: str
    tenant: str
    parent: str | None = None
    """The newest point when this one was made; None for the first."""
    digests: list[list[str]] = field(default_factory=list)

    def volume(self, index: int) -> PointVolume:
        return self.point.volumes[index]


def sealed(manifest: Manifest, key: Ed25519PrivateKey) -> bytes:
    """The manifest as a signed document."""
    text = json.dumps({"format": FORMAT, **to_json(manifest)}, sort_keys=True)
    return json.dumps(signed("manifest", text, key)).encode()


def unsealed(document: bytes, key: Ed25519PublicKey) -> Manifest:
    """The manifest in a signed document. Raises StorageError if it is damaged or was not signed by `key`."""
    try:
        fields: dict[str, Any] = json.loads(proven("manifest", document, key))
        if fields.get("format") != FORMAT:
            raise StorageError(f"a manifest of format {fields.get('format')!r} is unknown", "use the newer version")
        manifest = from_json(Manifest, fields)
        roots = [bytes.fromhex(volume.root) for volume in manifest.point.volumes]
    except InvalidSignature:
        raise StorageError("the manifest's signature is not this service's, or the manifest was altered") from None
    except (ValueError, KeyError, TypeError, BadMessage) as error:
        raise StorageError(f"the manifest cannot be read: {error}") from None
    if point_root(roots).hex() != manifest.point.root:
        raise StorageError(f"the manifest of {manifest.point.id} contradicts itself: root and volumes do not fit")
    return manifest
