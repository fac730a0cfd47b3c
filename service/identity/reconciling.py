"""A database from a backup does not know what happened since. At each start its servers are held against the site:
signed documents that say who owns an identity, and the epochs of the points."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping

from agent.protocol.errors import StorageError
from service.identity.ownership_documents import OwnershipDocuments
from service.store.rows import ServerRow, ServerState
from service.store.servers import ServerStore

UNKNOWN_MACHINE = "unknown-since-the-database-was-restored"
"""Owns an identity of which the site only proves that it changed hands."""

log = logging.getLogger(__name__)

Tell = Callable[[str, str], None]
"""(tenant, what was found out)"""


def reconcile(
    rows: Iterable[ServerRow],
    servers: ServerStore,
    documents: OwnershipDocuments,
    knows_run: Callable[[str], bool],
    tell: Tell,
    now: float,
    epochs: Mapping[str, int] | None = None,
) -> None:
    """Of the servers that have these rows. `epochs`: the highest of each server's points, where they are known."""
    for row in rows:
        try:
            _agree(row, servers, documents, knows_run, tell, now, (epochs or {}).get(row.id, 0))
        except StorageError as error:  # one document that cannot be read must not keep all other servers from recovery
            log.warning("who owns %s cannot be held against the site: %s", row.name, error)


def _agree(
    row: ServerRow,
    servers: ServerStore,
    documents: OwnershipDocuments,
    knows_run: Callable[[str], bool],
    tell: Tell,
    now: float,
    proven_epoch: int,
) -> None:
    document = documents.read(row)
    after = reconciled(row, document, knows_run, now, proven_epoch)
    if after != row:
        words = (
            f"{row.name}: the database said epoch {row.epoch}, owner {row.owner_machine}; "
            f"the site proves epoch {after.epoch}, owner {after.owner_machine}"
        )
        log.warning("%s", words)
        tell(row.tenant, words)
        servers.change(row.id, lambda _: after)
    elif document != row and (row.owner_machine is not None or document is not None):
        documents.write(row)


def reconciled(
    row: ServerRow,
    document: ServerRow | None,
    knows_run: Callable[[str], bool],
    now: float,
    proven_epoch: int = 0,
) -> ServerRow:
    """The row as the site proves it; pure. A run that the database does not know can neither be gone on with nor
    undone: then whoever owns the identity is the server from now on."""
    if document is not None and _rank(document) > _rank(row):
        row = document
        run = row.failover_run if row.state is ServerState.FAILED_OVER else row.failback_run
        if row.state is not ServerState.PROTECTED and not (run and knows_run(run)):
            row = dataclasses.replace(row, state=ServerState.PROTECTED, state_since=now)
    if row.owner_machine is None and 0 < proven_epoch >= row.epoch:
        # somebody owned it at that epoch, so whoever comes first now must not have the same
        return dataclasses.replace(row, epoch=proven_epoch + 1)
    if proven_epoch <= row.epoch:
        return row
    return dataclasses.replace(
        row,
        epoch=proven_epoch,
        owner_machine=UNKNOWN_MACHINE,
        owner_since=now,
        state=ServerState.PROTECTED,
        state_since=now,
        source_machine=row.owner_machine,
        last_seen_at=None,
    )


def _rank(row: ServerRow) -> tuple[int, bool, bool]:
    """Which of two is the later: epochs only rise, and within one an identity is claimed once, and settled."""
    return row.epoch, row.owner_machine is not None, row.state is ServerState.PROTECTED
