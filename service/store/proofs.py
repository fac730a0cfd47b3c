"""What runs have proven about servers and their points: a row for each server of a run that had something to say."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, func, insert, select

from recovery.preflight import Proof
from recovery.proofs import booted_point, verdicts
from recovery.runs import Run, RunKind
from service.store.database import Database
from service.store.reading import readable
from service.store.schema import proofs, runs


def keep_proofs(connection: Connection, run: Run) -> None:
    """Replaces what was known of this run before: it may have been tried again."""
    connection.execute(delete(proofs).where(proofs.c.run_id == run.id))
    rows: dict[str, dict[str, Any]] = {}
    for launch, proof in verdicts(run):
        server_id = launch.args["server_id"]
        if server_id in rows and not rows[server_id]["held"]:
            continue  # of several copies, the one that did not come up counts
        rows[server_id] = {
            "tenant": run.tenant,
            "run_id": run.id,
            "server_id": server_id,
            "point": booted_point(launch),
            "at": proof.at,
            "held": proof.held,
        }
    if rows:
        connection.execute(insert(proofs), list(rows.values()))


class ProofStore:
    """Raises as Database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def of_points(self, server_id: str) -> dict[str, Proof]:
        """The newest verdict on each of a server's points, by point id."""
        with self._database.read() as connection:
            found = connection.execute(
                select(proofs).where(proofs.c.server_id == server_id).order_by(proofs.c.at, proofs.c.run_id)
            ).mappings()
            return {point: proof for _, point, proof in readable(proofs, found, _proof)}

    def of_servers(self, tenant: str) -> dict[str, Proof]:
        """The newest verdict on each server, by server id."""
        return self._newest(proofs.c.tenant == tenant)

    def bootable(self, tenant: str) -> dict[str, Proof]:
        """The newest run that each server came up in with all its gates held, by server id."""
        return self._newest((proofs.c.tenant == tenant) & proofs.c.held)

    def proving_drills(self) -> set[str]:
        """The newest drill that each server, of whatever tenant, came up in: their ids."""
        drills = select(runs.c.id).where(runs.c.kind == RunKind.DRILL.value)
        return {proof.run for proof in self._newest(proofs.c.held & proofs.c.run_id.in_(drills)).values()}

    def _newest(self, wanted: ColumnElement[bool]) -> dict[str, Proof]:
        last = select(proofs.c.server_id, func.max(proofs.c.at).label("at")).where(wanted).group_by(proofs.c.server_id)
        newest = last.subquery()
        same = (proofs.c.server_id == newest.c.server_id) & (proofs.c.at == newest.c.at)
        with self._database.read() as connection:
            found = connection.execute(select(proofs).join(newest, same).where(wanted)).mappings()
            return {server_id: proof for server_id, _, proof in readable(proofs, found, _proof)}


def _proof(fields: dict[str, Any]) -> tuple[str, str, Proof]:
    """With its server and its point."""
    return fields["server_id"], fields["point"], Proof(run=fields["run_id"], at=fields["at"], held=fields["held"])
