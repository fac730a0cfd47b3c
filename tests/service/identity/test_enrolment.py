import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from agent.protocol.errors import (
    AuthError,
    BadMessage,
    Conflict,
    NotFound,
    StaleEpoch,
    TokenError,
    TrustError,
    UsageError,
)
from agent.protocol.messages import EnrollReply, EnrollRequest, PulledReport
from service.identity.enrolment import Enrolment
from service.identity.gatekeeper import Gatekeeper
from service.identity.ownership import Claim, StandDown, Take
from service.pki import Pki
from service.store.database import Database, sqlite_url
from service.store.enrolment import EnrolmentStore
from service.store.points import PointStore
from service.store.servers import ServerStore
from tests.service.certificates import make_key, request_of
from tests.service.store.rows_for_tests import manifest


class World:
    """A service's identity side, with a clock that can be moved."""

    def __init__(self, folder: Path) -> None:
        self.clock = time.time()
        self.database = Database.open(sqlite_url(folder / "x.sqlite"))
        self.store = EnrolmentStore(self.database)
        self.pki = Pki.open(folder / "pki", "127.0.0.1")
        self.enrolment = Enrolment(self.store, self.pki, lambda: self.clock)
        self.servers = ServerStore(self.database)
        self.points = PointStore(self.database)
        self.gatekeeper = Gatekeeper(self.enrolment, self.servers, self.points, lambda: self.clock)

    def token(self, name: str | None = None, hours: float = 24.0, tenant: str = "default") -> str:
        return self.enrolment.issue_token(tenant, name, hours).token.secret

    def enroll(self, token: str, machine: str = "AAAA", hostname: str = "web01", csr: str | None = None) -> EnrollReply:
        self.clock += 1
        return self.enrolment.enroll(
            EnrollRequest(
                token=token,
                csr_pem=request_of(make_key()) if csr is None else csr,
                hostname=hostname,
                machine_id=machine,
                agent_version="1",
            )
        )

    def serial(self, reply: EnrollReply) -> str:
        return f"{x509.load_pem_x509_certificate(reply.certificate_pem.encode()).serial_number:x}"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.database.close()


def test_a_token_makes_a_server_of_the_machines_name_and_is_good_once(world: World) -> None:
    token = world.token()
    assert world.enroll(token).server_name == "web01"
    with pytest.raises(TokenError, match="used already"):
        world.enroll(token)
    assert [row.owner_machine for row in world.servers.all("default")] == ["aaaa"]


def test_a_token_expires(world: World) -> None:
    token = world.token(hours=1)
    world.clock += 3600
    with pytest.raises(TokenError, match="expired"):
        world.enroll(token)


def test_a_token_of_nobody_is_refused(world: World) -> None:
    with pytest.raises(TokenError, match="does not know"):
        world.enroll("x" * 43)


def test_only_the_hash_of_a_token_is_kept(world: World, tmp_path: Path) -> None:
    token = world.token()
    world.database.close()
    assert all(token.encode() not in path.read_bytes() for path in tmp_path.glob("x.sqlite*"))


def test_an_enrolment_that_fails_leaves_the_token_unused(world: World) -> None:
    token = world.token()
    for wrong in ({"csr": "rubbish"}, {"machine": " "}, {"hostname": "no name/at all"}):
        with pytest.raises(BadMessage):
            world.enroll(token, **wrong)
    assert world.enroll(token).server_name == "web01"


def test_the_name_in_the_token_counts_and_lets_a_second_machine_in(world: World) -> None:
    first = world.enroll(world.token("db01"))
    second = world.enroll(world.token("db01"), machine="BBBB", hostname="repair")
    assert (first.server_name, second.server_id) == ("db01", first.server_id)


def test_two_machines_of_one_host_name_are_not_mixed_up(world: World) -> None:
    first = world.enroll(world.token())
    token = world.token()
    with pytest.raises(Conflict, match=r"by machine aaaa, not bbbb .*--name web01"):
        world.enroll(token, machine="BBBB")
    assert world.enroll(token, machine="aaaa").server_id == first.server_id, "the same machine enrols again"


def test_tenants_do_not_see_each_others_servers(world: World) -> None:
    world.enroll(world.token())
    other = world.enroll(world.token(tenant="acme"), machine="BBBB")
    assert [row.id for row in world.servers.all("acme")] == [other.server_id]


@pytest.mark.parametrize(("name", "hours", "tenant"), [("a/b", 1, "default"), (None, 0, "default"), (None, 1, "No!")])
def test_tokens_that_cannot_be_are_refused(world: World, name: str | None, hours: float, tenant: str) -> None:
    with pytest.raises(UsageError):
        world.token(name, hours, tenant)


def test_a_renewed_certificate_is_the_same_enrolment(world: World) -> None:
    reply = world.enroll(world.token())
    old = world.enrolment.certificate(world.serial(reply))
    world.clock += 1000
    renewed_pem = world.enrolment.renew(old.serial, request_of(make_key())).certificate_pem
    new = world.enrolment.certificate(
        world.serial(EnrollReply(server_id="", server_name="", certificate_pem=renewed_pem))
    )
    assert new.serial != old.serial
    assert (new.server_id, new.machine_id, new.enrolled_at) == (old.server_id, old.machine_id, old.enrolled_at)


def test_certificates_that_are_unknown_revoked_or_expired_are_refused(world: World) -> None:
    serial = world.serial(world.enroll(world.token()))
    with pytest.raises(TrustError, match="does not know"):
        world.gatekeeper.identify("123")
    world.clock += 366 * 86_400
    with pytest.raises(TrustError, match="has expired"):
        world.gatekeeper.identify(serial)
    world.clock -= 366 * 86_400
    assert world.gatekeeper.identify(serial).serial == serial
    world.enrolment.revoke(serial)
    with pytest.raises(AuthError, match="revoked"):
        world.gatekeeper.identify(serial)


def test_a_newer_enrolment_takes_over_and_the_older_machine_stands_down(world: World) -> None:
    first = world.enroll(world.token("web01"))
    assert world.gatekeeper.authorize_push(first.server_id, "AAAA", world.serial(first)).epoch == 1
    second = world.enroll(world.token("web01"), machine="BBBB")
    world.clock += 1
    looked = world.gatekeeper.admit(first.server_id, "bbbb", world.serial(second), claims=False)
    assert isinstance(looked[1], Claim), "a repair target that protects nothing takes nothing"
    assert world.gatekeeper.authorize_push(first.server_id, "AAAA", world.serial(first)).epoch == 1
    assert world.gatekeeper.admit(first.server_id, "bbbb", world.serial(second), claims=True)[1] == Take()
    assert world.gatekeeper.authorize_push(first.server_id, "bbbb", world.serial(second)).epoch == 2
    with pytest.raises(StaleEpoch, match="machine bbbb now, not to machine aaaa"):
        world.gatekeeper.authorize_push(first.server_id, "aaaa", world.serial(first))


def test_a_copied_identity_is_told_both_machines(world: World) -> None:
    reply = world.enroll(world.token())
    with pytest.raises(StaleEpoch, match=r"two agents with one identity: machine cccc .* which is machine aaaa"):
        world.gatekeeper.authorize_push(reply.server_id, "cccc", world.serial(reply))
    _, decision = world.gatekeeper.admit(reply.server_id, "cccc", world.serial(reply), claims=True)
    assert isinstance(decision, StandDown)


def test_a_certificate_is_good_for_its_own_server_only(world: World) -> None:
    first = world.enroll(world.token("web01"))
    second = world.enroll(world.token("db01"), machine="BBBB")
    with pytest.raises(AuthError):
        world.gatekeeper.authorize_push(first.server_id, "bbbb", world.serial(second))
    world.points.add(manifest("pt-1", first.server_id))
    assert world.gatekeeper.point_of(first.server_id, "latest").id == "pt-1"
    with pytest.raises(NotFound, match="another server"):
        world.gatekeeper.point_of(second.server_id, "pt-1")
    with pytest.raises(NotFound, match="no recovery point"):
        world.gatekeeper.point_of(second.server_id, "latest")


def test_a_pull_is_remembered(world: World) -> None:
    reply = world.enroll(world.token())
    world.points.add(manifest("pt-1", reply.server_id))
    world.gatekeeper.record_pull("pt-1", 0, PulledReport(root="ab", machine_id="AAAA"))
    assert world.points.pulled_volumes("pt-1") == {0}
