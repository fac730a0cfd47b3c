"""What runs need, and nothing else: opened first, since people wait for them after the service was killed.

The receiver and all that answers over HTTP is a third of a second of imports, and comes behind that (service/serve.py).
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from agent.protocol.tokens import AdminToken
from recovery.checks import booted_servers
from recovery.control import Server
from recovery.drills.filesystems import FilesystemChecks
from recovery.executor import Executor
from recovery.repair import worker
from recovery.repair.job import BootRepair
from recovery.repair.windows.supplied import DriverFolder
from recovery.scripts import Scripts
from recovery.sites.local import LocalSite, accel
from service.bell import Bell
from service.control import ServiceControl
from service.data_folder import admin_token
from service.evidence.keeper import EvidenceKeeper
from service.identity.ownership_documents import OwnershipDocuments
from service.identity.reconciling import reconcile
from service.leftovers import Leftovers
from service.pki import Pki
from service.receiver.points import PointArchive
from service.store.audit import AuditStore
from service.store.commands import CommandStore
from service.store.database import Database, sqlite_url
from service.store.plans import PlanStore
from service.store.points import PointStore
from service.store.proofs import ProofStore
from service.store.rows import ServerRow
from service.store.runs import RunRows
from service.store.servers import ServerStore

if TYPE_CHECKING:
    from service.receiver.receiver import Receiver


class ReceiverToCome:
    """The receiver, for runs that go on before it is there. Until then nobody pushes, and no points are asked for."""

    def __init__(self, site: LocalSite, points: PointStore) -> None:
        self.points_known = threading.Event()
        """The rows of points say what the site holds."""
        self._receiver: Receiver | None = None
        self._site = site
        self._points = points

    def has_come(self, receiver: Receiver) -> None:
        self._receiver = receiver

    def capture(self, server: Server, instance_id: str, label: str, request_id: str) -> str:
        """As service.receiver.capture, once points are known."""
        from service.receiver.capture import capture

        assert self._receiver is not None
        return capture(self._receiver, self._site, self._points, server, instance_id, label, request_id)

    def fence(self, server_id: str, because: str) -> None:
        """As Receiver.fence."""
        if self._receiver is not None:
            self._receiver.fence(server_id, because)


@dataclass(frozen=True, slots=True, kw_only=True)
class Core:
    pki: Pki
    admin: AdminToken
    site: LocalSite
    archive: PointArchive
    points: PointStore
    servers: ServerStore
    commands: CommandStore
    runs: RunRows
    plans: PlanStore
    proofs: ProofStore
    audit: AuditStore
    database: Database
    bell: Bell
    scripts: Scripts
    repairer: BootRepair | None
    keeper: EvidenceKeeper
    executor: Executor
    leftovers: Leftovers
    receiver: ReceiverToCome
    owners: OwnershipDocuments

    @classmethod
    def open(
        cls,
        data: Path,
        host: str,
        database_url: str | None,
        keep_evidence_days: int,
        resources: contextlib.AsyncExitStack,
    ) -> Self:
        """With scratch of what was cut off removed; `resources` closes it. Raises Conflict, StorageError, SiteError,
        UsageError (the database's URL)."""
        pki = Pki.open(data / "pki", host)
        database = Database.open(database_url or sqlite_url(data / "understudy.sqlite"))
        resources.callback(database.close)
        site = LocalSite(data / "site")
        resources.callback(site.close)
        bell = Bell()
        archive = PointArchive(site, pki.signing_key, data / "receiver" / "scratch")
        points = PointStore(database, archive.manifest)
        owners = OwnershipDocuments(site, pki.signing_key)
        servers = ServerStore(database, owners.note)
        commands = CommandStore(database, bell.ring_for)
        runs = RunRows(database, bell.ring)
        plans, proofs, audit = PlanStore(database), ProofStore(database), AuditStore(database)
        receiver = ReceiverToCome(site, points)
        control = ServiceControl(
            servers, points, commands, audit, receiver.capture, receiver.fence, receiver.points_known
        )
        scripts = Scripts(data / "scripts")
        repairer = _boot_repair(data)
        keeper = _evidence_keeper(data, pki, site, plans, repairer)
        executor = Executor(runs, site, control, scripts=scripts, repairer=repairer, witness=keeper)
        resources.callback(executor.stop)
        leftovers = Leftovers(data / "drills", data / "repairs", runs, proofs, keep_evidence_days)
        leftovers.clear_scratch()
        return cls(
            pki=pki,
            admin=admin_token(data, pki.ca_fingerprint),
            site=site,
            archive=archive,
            points=points,
            servers=servers,
            commands=commands,
            runs=runs,
            plans=plans,
            proofs=proofs,
            audit=audit,
            database=database,
            bell=bell,
            scripts=scripts,
            repairer=repairer,
            keeper=keeper,
            executor=executor,
            leftovers=leftovers,
            receiver=receiver,
            owners=owners,
        )

    def agree_of_runs(self) -> None:
        """As `agree`, of the servers that unfinished runs are about: to look at all takes a second for 5,000."""
        ids = {server_id for run in self.runs.unfinished() for server_id in booted_servers(run)}
        self._agree(self.servers.those(ids), None)

    def agree(self, epochs: Mapping[str, int]) -> None:
        """Let the database and the site agree about who owns each server: the higher epoch is right. `epochs`: those of
        all points, by server. Raises StorageError."""
        self._agree(self.servers.every(), epochs)

    def _agree(self, rows: Iterable[ServerRow], epochs: Mapping[str, int] | None) -> None:
        reconcile(
            rows,
            self.servers,
            self.owners,
            self.runs.knows,
            lambda tenant, words: self.audit.add(tenant, "service", "owner", words),
            time.time(),
            epochs,
        )


def _boot_repair(data: Path) -> BootRepair | None:
    """None on a machine where no worker for it can be made: replicas then boot as they are."""
    if worker.unavailable():
        return None
    choose = functools.partial(accel.choose, data / "site", None)
    return BootRepair(data / "repairs", choose, DriverFolder(data / "drivers"))


def _evidence_keeper(
    data: Path, pki: Pki, site: LocalSite, plans: PlanStore, repairer: BootRepair | None
) -> EvidenceKeeper:
    """What keeps the proof of drills in the data folder; scratch of checks that were cut off is removed."""
    unchecked = worker.unavailable()
    checks = FilesystemChecks(data / "drills" / ".scratch", functools.partial(accel.choose, data / "site", None))
    checks.clear()
    return EvidenceKeeper(
        data / "drills",
        pki.signing_key,
        site,
        repair_of=lambda run_id, server_id: repairer.record(run_id, server_id) if repairer else None,
        plan_text=plans.find,
        checks=None if unchecked else checks,
        unchecked=unchecked,
    )
