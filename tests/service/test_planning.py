"""The plan book and the desk over a real database; the site is in memory."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
from sqlalchemy import Engine, event

from agent.protocol.errors import Conflict, NotFound, RecoveryError, UsageError
from agent.protocol.messages import VolumeDeclaration
from recovery.executor import Executor
from recovery.plans import Caps
from recovery.repair.job import BootRepair
from recovery.repair.windows.firstboot import SAYS_UP
from recovery.repair.windows.supplied import DriverFolder
from recovery.runs import RunKind, RunState
from recovery.scripts import Scripts
from recovery.sites.contract import Site
from service.desk import RunDesk
from service.estate import Sources
from service.plan_checks import check_all
from service.planning import PlanBook
from service.store.audit import AuditStore
from service.store.database import Database
from service.store.plans import PlanStore
from service.store.points import PointStore
from service.store.proofs import ProofStore
from service.store.runs import RunRows
from service.store.servers import ServerStore
from tests.recovery.memory_control import MemoryControl
from tests.recovery.world import FakeClock, MemorySite
from tests.service.store.rows_for_tests import add_server, manifest

INVENTORY = {
    "cpus": 4,
    "memory_mib": 2048,
    "network": [
        {"name": "docker0", "mac": "02:42", "addresses": ["172.17.0.1/16"]},
        {"name": "eth0", "mac": "52:54", "addresses": ["fe80::1/64", "192.0.2.7/24"]},
    ],
    "boot_findings": [
        {"level": "warn", "what": "no serial console", "way_out": "add one"},
        {"level": "ok", "what": "x"},
    ],
}
SHOP = """plan: shop
groups:
- servers:
  - {name: web01, address: {failover: same}, gates: [{console: {text: "login:"}}]}
"""
BOTH = "{plan: both, groups: [{servers: [{name: new01}]}, {servers: [{name: web01}]}]}"
TAKEN_AT = "1970-01-01T00:16:00.000Z"


class Office:
    def __init__(self, database: Database, folder: Path, repairer: BootRepair | None = None) -> None:
        self.site = MemorySite([])
        self.points, self.plans, self.runs = PointStore(database), PlanStore(database), RunRows(database)
        servers = ServerStore(database)
        self.audit = AuditStore(database)
        site = cast("Site", self.site)
        sources = Sources(
            servers=servers,
            points=self.points,
            plans=self.plans,
            runs=self.runs,
            proofs=ProofStore(database),
            site=site,
            repairer=repairer,
        )
        self.book = PlanBook(sources, Scripts(folder / "scripts"), now=lambda: 1000.0)
        self.executor = Executor(self.runs, site, MemoryControl([], "web01"), FakeClock())
        self.desk = RunDesk(servers, self.book, self.runs, site, self.executor, now=lambda: 1000.0)


@pytest.fixture
def office(database: Database, tmp_path: Path) -> Office:
    volumes = (VolumeDeclaration(path="/dev/vda", size_bytes=1 << 30, block_bytes=65536),)
    add_server(database, volumes=volumes, inventory=INVENTORY)
    made = Office(database, tmp_path)
    made.points.add(manifest("pt-1", taken_at=TAKEN_AT))
    return made


def test_a_plan_of_servers_that_nobody_protects_is_refused_unless_it_is_a_draft(office: Office) -> None:
    text = SHOP.replace("web01", "web02")
    with pytest.raises(UsageError, match=r"no server 'web02' is protected \(there are: web01\)"):
        office.book.apply("default", "shop", text, draft=False)
    with pytest.raises(NotFound):
        office.plans.get("default", "shop")
    assert office.book.apply("default", "shop", text, draft=True)[1] == ["web02"]
    with pytest.raises(UsageError, match="calls itself 'shop'"):
        office.book.apply("default", "other", SHOP, draft=False)


def test_the_size_and_the_address_come_from_the_inventory(office: Office) -> None:
    office.book.apply("default", "shop", SHOP, draft=False)
    (launch,) = office.book.plan("default", RunKind.FAILOVER, "shop", None).run.launches()
    assert (launch.args["cpus"], launch.args["memory_mib"], launch.args["address"]) == (4, 2048, "192.0.2.7/24")


def test_what_an_agent_sends_for_an_inventory_is_not_believed(database: Database, tmp_path: Path) -> None:
    add_server(database, inventory={"cpus": "many", "memory_mib": -1, "network": [7], "boot_findings": {"level": 1}})
    office = Office(database, tmp_path)
    office.points.add(manifest("pt-1", taken_at=TAKEN_AT))
    (launch,) = office.book.plan("default", RunKind.FAILOVER, "web01", None).run.launches()
    assert (launch.args["cpus"], launch.args["memory_mib"]) == (2, 1024)


def test_a_windows_waits_for_what_boot_repair_has_it_say_and_for_drivers(database: Database, tmp_path: Path) -> None:
    add_server(database, inventory={"os": "Microsoft Windows Server 2022 Datacenter"})
    drivers = DriverFolder(tmp_path / "drivers")
    office = Office(database, tmp_path, BootRepair(tmp_path / "repairs", lambda: "tcg", drivers))
    office.points.add(manifest("pt-1", taken_at=TAKEN_AT))
    steps = office.book.plan("default", RunKind.DRILL, "web01", None).run.steps
    assert [SAYS_UP in step.name for step in steps if step.action == "gate"] == [True]

    def said() -> list[str]:
        findings = office.book.check("default", "web01").findings
        return [finding["text"] for finding in findings if "virtio drivers" in finding["text"]]

    (text,) = said()
    assert text == (
        "web01 runs Windows, and there is no viostor.sys and no netkvm.inf here: without virtio drivers of its own, it"
        " starts on AHCI disks and an e1000e card, which is slower"
    )
    on_ahci = "{plan: slow, groups: [{servers: [{name: web01, devices: ahci}]}]}"
    office.book.apply("default", "slow", on_ahci, draft=False)
    assert not [found for found in office.book.check("default", "slow").findings if "virtio" in found["text"]]
    drivers.folder.mkdir()
    for name in ("viostor.sys", "netkvm.inf"):
        (drivers.folder / name).write_bytes(b"")
    assert said() == []


def test_a_price_is_shown_before_and_kept_with_the_run(office: Office) -> None:
    office.site.per_hour = 0.25
    planned = office.book.plan("default", RunKind.DRILL, "web01", None)
    document = office.desk.dry_run_to_json(planned)
    assert (document["state"], document["price"]["per_hour"], document["price"]["disk_bytes"]) == (
        "planned",
        0.25,
        1 << 40,
    )
    run = office.desk.start(planned)
    assert office.executor.wait(run.id).price == document["price"]


def test_the_steps_of_a_dry_run_are_those_that_are_performed(office: Office) -> None:
    planned = office.book.plan("default", RunKind.DRILL, "web01", None)
    shown = office.desk.dry_run_to_json(planned)["steps"]
    done = office.executor.wait(office.desk.start(planned).id)
    assert [(step["name"], step["after"]) for step in shown] == [(step.name, step.after) for step in done.steps]


@pytest.mark.parametrize("kind", [RunKind.DRILL, RunKind.FAILOVER, RunKind.CLONE])
def test_planned_again_with_its_seed_a_run_is_word_for_word_what_was_shown(office: Office, kind: RunKind) -> None:
    shown = office.desk.dry_run_to_json(office.book.plan("default", kind, "web01", None, copies=2))
    again = office.desk.dry_run_to_json(office.book.plan("default", kind, "web01", None, copies=2, seed=shown["seed"]))
    assert again == shown
    other = office.desk.dry_run_to_json(office.book.plan("default", kind, "web01", None, copies=2))
    assert other["id"] != shown["id"]
    assert len({instance["id"] for instance in [*shown["instances"], *other["instances"]]}) == 4
    with pytest.raises(UsageError, match="32 hexadecimal digits"):
        office.book.plan("default", kind, "web01", None, seed="x")


def test_a_server_without_a_point_does_not_keep_the_others_from_booting(office: Office, database: Database) -> None:
    add_server(database, id="srv-2", name="new01")
    office.book.apply("default", "both", BOTH, draft=False)
    with pytest.raises(NotFound, match="--without new01"):
        office.book.plan("default", RunKind.FAILOVER, "both", None)
    planned = office.book.plan("default", RunKind.FAILOVER, "both", None, left_out=["new01"])
    assert [launch.args["server"] for launch in planned.run.launches()] == ["web01"]
    assert "new01" not in str(office.book.findings(planned))


def test_a_plan_that_cannot_be_read_any_more_is_red_and_takes_no_other_along(office: Office) -> None:
    office.plans.put("default", "old", SHOP.replace("shop", "old") + "  wait_seconds: 010\n")
    office.book.apply("default", "shop", SHOP, draft=False)
    checks = {check.plan: check for check in office.book.checks("default")}
    assert checks.keys() == {"old", "shop"}
    (finding,) = checks["old"].findings
    assert (checks["old"].level, finding["reason"]) == ("red", "plan")
    assert "line 5: groups[0].wait_seconds: this number cannot be read" in finding["text"]
    assert "understudy plan apply" in finding["hint"]
    assert checks["shop"].level == "amber"
    with pytest.raises(UsageError, match="cannot be read"):
        office.book.plan("default", RunKind.DRILL, "old", None)


def test_what_is_failed_over_already_is_told_before_somebody_tries(office: Office) -> None:
    run = office.executor.wait(
        office.desk.start(office.book.plan("default", RunKind.FAILOVER, "web01", None, dead=["*"])).id
    )
    check = office.book.check("default", "web01")
    assert (check.level, check.findings[0]["reason"]) == ("red", "run")
    assert check.findings[0]["text"] == f"web01 has been failed over by {run.id} ({run.state})"
    drill = office.book.findings(office.book.plan("default", RunKind.DRILL, "web01", None))
    assert "run" not in [finding.reason for finding in drill], "a drill may run beside it"


def test_only_a_failover_that_has_not_ended_is_brought_home(office: Office) -> None:
    drill = office.executor.wait(office.desk.start(office.book.plan("default", RunKind.DRILL, "web01", None)).id)
    with pytest.raises(Conflict, match="only a failover can be brought home"):
        office.desk.plan_failback("default", drill.id, None)
    over = office.desk.start(office.book.plan("default", RunKind.FAILOVER, "web01", None, dead=["*"]))
    office.executor.wait(over.id)
    office.executor.end(over.id, force=True)
    office.executor.wait(over.id)
    with pytest.raises(Conflict, match="has ended"):
        office.desk.fail_back("default", over.id, None)


def test_a_tenants_caps_stop_a_run_and_a_reason_lets_it_pass(office: Office) -> None:
    office.plans.put_caps("default", Caps(instances=0))
    planned = office.book.plan("default", RunKind.DRILL, "web01", None)
    assert next(finding.reason.value for finding in office.book.findings(planned)) == "cap"
    with pytest.raises(RecoveryError, match="1 instance is more than tenant default allows"):
        office.desk.start(planned)
    run = office.desk.start(office.book.plan("default", RunKind.DRILL, "web01", None), over_cap="fire")
    assert office.executor.wait(run.id).state is RunState.SUCCEEDED
    assert office.runs.get(run.id).over_cap == "fire"


def test_the_newest_proven_bootable_point_is_one_that_a_run_has_booted(office: Office) -> None:
    with pytest.raises(NotFound, match="no proven bootable point"):
        office.book.plan("default", RunKind.DRILL, "web01", "latest-bootable")
    office.executor.wait(office.desk.start(office.book.plan("default", RunKind.DRILL, "web01", None)).id)
    office.points.add(manifest("pt-2", taken_at=TAKEN_AT))
    planned = office.book.plan("default", RunKind.DRILL, "web01", "latest-bootable")
    assert planned.points["web01"].id == "pt-1"
    assert office.book.plan("default", RunKind.DRILL, "web01", None).points["web01"].id == "pt-2"


def test_a_round_of_checks_reads_no_more_often_for_many_plans_than_for_one(office: Office, database: Database) -> None:
    asked: list[str] = []
    event.listen(Engine, "before_cursor_execute", asks := lambda *said: asked.append(said[2]))
    try:
        assert [check.plan for check in office.book.checks("default")] == ["web01"]
        alone = len(asked)
        for number in range(2, 12):
            add_server(database, id=f"srv-{number}", name=f"web{number:02}")
            office.points.add(manifest(f"pt-{number}", f"srv-{number}", server=f"web{number:02}", taken_at=TAKEN_AT))
        office.book.apply("default", "shop", SHOP, draft=False)
        office.book.apply("default", "mall", SHOP.replace("shop", "mall"), draft=False)
        asked.clear()
        assert len(list(office.book.checks("default"))) == 12
        assert len(asked) == alone
    finally:
        event.remove(Engine, "before_cursor_execute", asks)


def test_every_plan_and_every_server_without_one_is_checked_and_changes_are_told(
    office: Office, database: Database
) -> None:
    add_server(database, id="srv-2", name="db01")
    office.book.apply("default", "shop", SHOP, draft=False)
    check_all(office.book, office.plans, office.audit)
    checks = {check.plan: check for check in office.plans.checks("default")}
    assert {plan: check.level for plan, check in checks.items()} == {"shop": "amber", "db01": "red"}
    assert checks["db01"].findings[0]["text"] == "there is no recovery point of db01"
    told = len(office.audit.newest_first("default"))
    assert told == 2
    check_all(office.book, office.plans, office.audit)
    assert len(office.audit.newest_first("default")) == told, "nothing has changed"
    office.plans.remove("default", "shop")
    check_all(office.book, office.plans, office.audit)
    assert [check.plan for check in office.plans.checks("default")] == ["db01", "web01"]


def test_copies_are_not_promised_names_where_nothing_could_give_them_any(office: Office) -> None:
    with pytest.raises(UsageError, match="no boot repair, so copies keep the names of their servers"):
        office.book.plan("default", RunKind.CLONE, "web01", None, host_names="test-{copy}")
    assert office.book.plan("default", RunKind.CLONE, "web01", None).run.kind is RunKind.CLONE
