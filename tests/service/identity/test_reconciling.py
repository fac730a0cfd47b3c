"""Yesterday's database beside today's site: nobody pushes at an epoch that the site knows to be over."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import cast

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agent.protocol.errors import StaleEpoch, StorageError, StorageFull
from service.control import ServiceControl
from service.identity.enrolment import Enrolment
from service.identity.gatekeeper import Gatekeeper
from service.identity.ownership_documents import NAME, OwnershipDocuments
from service.identity.reconciling import UNKNOWN_MACHINE, reconcile, reconciled
from service.store.audit import AuditStore
from service.store.commands import CommandStore
from service.store.database import Database, sqlite_url
from service.store.points import PointStore
from service.store.rows import CertificateRow, ServerRow, ServerState
from service.store.servers import ServerStore
from tests.seeds import seeded
from tests.service.receiver.memory_site import MemorySite
from tests.service.store.rows_for_tests import add_server

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
HOME = ServerRow(id="srv-1", tenant="default", name="web01", created_at=1.0, owner_machine="home", owner_since=2.0)
AWAY = dataclasses.replace(
    HOME,
    epoch=2,
    state=ServerState.FAILED_OVER,
    owner_machine="instance",
    owner_since=50.0,
    source_machine="home",
    failover_run="failover-1",
)


class Certificates:
    """One disk, and so one certificate, of a machine that enrolled before all that is told here."""

    def certificate(self, serial: str) -> CertificateRow:
        return CertificateRow(
            serial=serial, tenant="default", server_id="srv-1", machine_id="home", enrolled_at=1.5, not_after=9e9
        )


class Service:
    """What of a service decides who may push; `folder` has its database."""

    def __init__(self, folder: Path, site: MemorySite, knows: str = "") -> None:
        self.path = folder / "db.sqlite"
        self.database = Database.open(sqlite_url(self.path))
        self.documents = OwnershipDocuments(site, KEY)  # type: ignore[arg-type]  # it has documents
        self.servers = ServerStore(self.database, self.documents.note)
        self.audit = AuditStore(self.database)
        points = PointStore(self.database)
        commands = CommandStore(self.database)
        self.control = ServiceControl(
            self.servers, points, commands, self.audit, lambda *_: "pt", lambda *_: None, now=lambda: 50.0
        )
        self.gatekeeper = Gatekeeper(cast("Enrolment", Certificates()), self.servers, points)
        self.knows = knows

    def agree(self, **epochs: int) -> None:
        """As at each start."""
        of_servers = {name.replace("_", "-"): epoch for name, epoch in epochs.items()}
        reconcile(
            self.servers.every(),
            self.servers,
            self.documents,
            lambda run: run == self.knows,
            lambda tenant, words: self.audit.add(tenant, "service", "owner", words),
            60.0,
            of_servers,
        )

    def takes(self, machine: str) -> int | None:
        """The epoch that a push of this machine would have; None: it has to stand down."""
        try:
            return self.gatekeeper.authorize_push("srv-1", machine, "any").epoch
        except StaleEpoch:
            return None


@pytest.fixture
def site() -> MemorySite:
    return MemorySite()


def restored(tmp_path: Path, site: MemorySite) -> Service:
    """A service whose database was copied before a failover, and put back after it."""
    service = Service(tmp_path, site)
    add_server(service.database, owner_machine="home", owner_since=2.0)
    service.agree()
    service.database.close()
    shutil.copyfile(tmp_path / "db.sqlite", tmp_path / "yesterday.sqlite")
    service = Service(tmp_path, site)
    assert service.control.hand_to_instance("srv-1", "instance", "failover-1") == 2
    assert (service.takes("home"), service.takes("instance")) == (None, 2)
    service.database.close()
    shutil.copyfile(tmp_path / "yesterday.sqlite", tmp_path / "db.sqlite")
    return Service(tmp_path, site)


def test_a_fenced_source_stays_fenced_when_the_database_is_yesterdays(tmp_path: Path, site: MemorySite) -> None:
    service = restored(tmp_path, site)
    assert service.takes("home") == 1, "so it would be without the site's proof"
    service.agree()
    assert (service.takes("home"), service.takes("instance")) == (None, 2)
    row = service.servers.get("srv-1")
    assert (row.state, row.source_machine) == (ServerState.PROTECTED, "home"), (
        "its run is not known: it can be panicked"
    )
    (entry,) = [entry for entry in service.audit.newest_first("default") if entry.action == "owner"]
    assert entry.detail.endswith("the site proves epoch 2, owner instance")
    service.agree()
    assert service.servers.get("srv-1") == dataclasses.replace(row, stale=service.servers.get("srv-1").stale)
    service.database.close()


def test_where_the_document_is_lost_points_prove_that_somebody_else_was_the_owner(
    tmp_path: Path, site: MemorySite
) -> None:
    service = restored(tmp_path, site)
    site.delete_document("srv-1", NAME)
    service.agree(srv_1=2)
    assert (service.takes("home"), service.takes("instance")) == (None, None)
    assert service.servers.get("srv-1").owner_machine == UNKNOWN_MACHINE
    service.database.close()


def test_a_flipped_bit_in_the_document_is_turned_back(tmp_path: Path, site: MemorySite) -> None:
    service, rng = restored(tmp_path, site), seeded()
    sound = site.read_document("srv-1", NAME)
    damaged = bytearray(sound)
    damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    site.write_document("srv-1", NAME, bytes(damaged))
    service.agree()
    assert (service.takes("home"), service.takes("instance")) == (None, 2)
    service.database.close()


def test_a_move_that_a_crash_cut_off_is_made_at_the_next_start(tmp_path: Path, site: MemorySite) -> None:
    """The document was written, the row was not."""
    service = restored(tmp_path, site)
    service.knows = "failover-1"
    service.agree()
    assert service.servers.get("srv-1").state is ServerState.FAILED_OVER
    assert service.control.hand_to_instance("srv-1", "instance", "failover-1", 1) == 2, "its run goes on"
    service.database.close()


def test_who_owns_an_identity_changes_only_once_the_site_has_proof_of_it(
    tmp_path: Path, site: MemorySite, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service(tmp_path, site)
    before = add_server(service.database, owner_machine="home", owner_since=2.0)

    def full(*_: object) -> None:
        raise StorageFull("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(site, "write_document", full)
        with pytest.raises(StorageFull):
            service.control.hand_to_instance("srv-1", "instance", "failover-1")
    assert service.servers.get("srv-1") == before
    with monkeypatch.context() as patch:  # and what did not come to be in the database is none at the site either
        patch.setattr("service.store.servers._values", lambda row: full())
        with pytest.raises(StorageFull):
            service.control.hand_to_instance("srv-1", "instance", "failover-1")
    service.agree()
    assert service.servers.get("srv-1") == before
    service.database.close()


@pytest.mark.parametrize(
    ("row", "document", "proven", "expected"),
    [
        (HOME, None, 1, HOME),
        (HOME, None, 0, HOME),
        (AWAY, HOME, 2, AWAY),  # the site is yesterday's
        (HOME, AWAY, 2, dataclasses.replace(AWAY, state=ServerState.PROTECTED, state_since=60.0)),
        (dataclasses.replace(HOME, owner_machine=None), HOME, 1, HOME),  # claimed within the epoch
        (HOME, dataclasses.replace(HOME, owner_machine=None), 1, HOME),
        (
            dataclasses.replace(HOME, owner_machine=None),
            None,
            1,  # somebody owned it at this epoch, and made a point
            dataclasses.replace(HOME, owner_machine=None, epoch=2),
        ),
        (
            dataclasses.replace(HOME, owner_machine=None),
            None,
            4,
            dataclasses.replace(HOME, owner_machine=None, epoch=5),
        ),
        (  # claimed within the epoch, and nothing else is left of it
            dataclasses.replace(HOME, owner_machine=None),
            None,
            1,
            dataclasses.replace(HOME, owner_machine=None, epoch=2),
        ),
    ],
)
def test_the_later_of_two_counts(row: ServerRow, document: ServerRow | None, proven: int, expected: ServerRow) -> None:
    assert reconciled(row, document, lambda run: False, 60.0, proven) == expected


def test_a_document_of_another_key_or_server_proves_nothing(site: MemorySite) -> None:
    documents = OwnershipDocuments(site, KEY)  # type: ignore[arg-type]  # it has documents
    OwnershipDocuments(site, Ed25519PrivateKey.generate()).write(AWAY)  # type: ignore[arg-type]
    assert documents.read(HOME) is None
    documents.write(AWAY)
    assert documents.read(HOME) == AWAY
    site.write_document("srv-2", NAME, site.read_document("srv-1", NAME))
    assert documents.read(dataclasses.replace(HOME, id="srv-2")) is None


def test_a_document_that_cannot_be_read_keeps_nothing_from_starting_and_points_prove_what_they_can(
    tmp_path: Path, site: MemorySite, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = restored(tmp_path, site)

    def unreadable(*_: object) -> bytes:
        raise StorageError("cannot read the document")

    monkeypatch.setattr(site, "read_document", unreadable)
    service.agree(srv_1=2)
    assert service.servers.get("srv-1").epoch == 1
    monkeypatch.undo()
    service.agree(srv_1=2)
    assert service.takes("home") is None
    service.database.close()


def test_servers_that_cannot_wait_are_looked_at_alone(tmp_path: Path, site: MemorySite) -> None:
    service = restored(tmp_path, site)
    before = service.servers.get("srv-1")
    arguments = (service.servers, service.documents, lambda _: False, lambda *_: None, 60.0)
    reconcile(service.servers.those({"srv-2"}), *arguments)
    assert service.servers.get("srv-1") == before
    reconcile(service.servers.those({"srv-1", "srv-2"}), *arguments)
    assert service.servers.get("srv-1").epoch > before.epoch
