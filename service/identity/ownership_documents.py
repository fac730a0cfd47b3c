"""Who owns a server's identity, as a signed document beside its points: the site's proof, which a database from
yesterday is held against.

It is written before the row changes, so no epoch is ever handed out that the site does not know of. A crash in between
leaves the document one move ahead, and the next start makes that move in the row as well."""

from __future__ import annotations

import dataclasses
import json
import logging
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agent.protocol.errors import NotFound
from recovery.seals import turned_back
from recovery.sites.contract import Site
from service.signed import proven, signed
from service.store.rows import ServerRow, ServerState

NAME = "identity.owner"
FORMAT = "understudy-owner-1"
_FIELDS = (
    "epoch",
    "state",
    "state_since",
    "owner_machine",
    "owner_since",
    "retired_machine",
    "source_machine",
    "home_arrived",
    "failover_run",
    "failback_run",
)

log = logging.getLogger(__name__)


class OwnershipDocuments:
    def __init__(self, site: Site, key: Ed25519PrivateKey) -> None:
        self._site = site
        self._key = key

    def note(self, before: ServerRow, after: ServerRow) -> None:
        """The row is about to change so. Raises StorageError: then it must not."""
        if _ownership(before) != _ownership(after):
            self.write(after)

    def write(self, row: ServerRow) -> None:
        text = json.dumps({"format": FORMAT, "server_id": row.id, **_ownership(row)}, sort_keys=True)
        content = json.dumps(signed("ownership", text, self._key)).encode()
        self._site.write_document(row.id, NAME, content)

    def read(self, row: ServerRow) -> ServerRow | None:
        """The server as the document has it; None where there is none, or none that can be proven.

        Raises StorageError."""
        try:
            content = self._site.read_document(row.id, NAME)
        except NotFound:
            return None
        fields = self._fields(content, row.id)
        if fields is None and (healed := turned_back(content, lambda one: self._fields(one, row.id) is not None)):
            log.warning("%s of %s: a flipped bit was turned back", NAME, row.id)
            self._site.write_document(row.id, NAME, healed)
            fields = self._fields(healed, row.id)
        if fields is None:
            log.warning("%s of %s is damaged: who owns the identity is known from the database alone", NAME, row.id)
            return None
        return dataclasses.replace(row, **fields)

    def _fields(self, content: bytes, server_id: str) -> dict[str, Any] | None:
        try:
            document = json.loads(proven("ownership", content, self._key.public_key()))
            if (document["format"], document["server_id"]) != (FORMAT, server_id):
                return None
            fields: dict[str, Any] = {name: document[name] for name in _FIELDS}
            return fields | {"state": ServerState(fields["state"])}
        except (InvalidSignature, ValueError, KeyError, TypeError, RecursionError):
            return None


def _ownership(row: ServerRow) -> dict[str, Any]:
    return {name: getattr(row, name) for name in _FIELDS}
