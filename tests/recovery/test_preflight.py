from __future__ import annotations

import dataclasses

import pytest

from agent.protocol.errors import Conflict
from recovery.checks import SiteFacts
from recovery.control import BootFinding
from recovery.planner import Order
from recovery.plans import Plan, parse_plan
from recovery.preflight import ADVISED_BYTES_PER_INSTANCE, Level, Proof, Reason, Situation, preflight, worst
from recovery.prices import add_up
from recovery.runs import RunKind
from recovery.sites.contract import Price, Size
from tests.recovery.memory_control import make_point
from tests.recovery.world import NOW, World

WEB = "{plan: p, groups: [{servers: [{name: web01, memory_mib: 4096, gates: [{tcp: {port: 80}}]}]}]}"
FRESH = "2027-01-15T07:59:00+00:00"
PROVEN = {"web01": Proof(run="drill-1", at=NOW - 3600, held=True)}


def situation(plan: Plan | None = None, **changes: object) -> Situation:
    world = World()
    world.control.servers["web01"] = dataclasses.replace(world.control.servers["web01"], cpus=2, memory_mib=1024)
    plan = plan or parse_plan(WEB)
    run = world.plan(RunKind.FAILOVER, plan)
    made = Situation(
        plan=plan,
        run=run,
        servers={"web01": world.control.servers["web01"]},
        points={"web01": make_point("p-1", taken_at=FRESH)},
        facts=SiteFacts(name="local", free_bytes=1 << 40, free_memory_mib=8192),
        price=add_up([Price(memory_mib=4096, cpus=2)], disk_bytes=1 << 30),
        now=NOW,
        proofs=PROVEN,
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def found(now: Situation) -> list[tuple[Reason, Level]]:
    return [(finding.reason, finding.level) for finding in preflight(now)]


def test_when_all_is_well_there_is_nothing_to_say() -> None:
    assert preflight(situation()) == []
    assert worst([]) is Level.GREEN


def test_a_point_older_than_the_plan_promises_is_red_and_older_than_a_day_amber() -> None:
    old = {"web01": make_point("p-1", taken_at="2027-01-15T07:00:00+00:00")}
    promised = parse_plan(WEB.replace("plan: p,", "plan: p, rpo_seconds: 900,"))
    (finding,) = preflight(situation(promised, points=old))
    assert (finding.reason, finding.level) == (Reason.POINT, Level.RED)
    assert finding.text == "point p-1 of web01 is 60 minutes old, and the plan promises 15 minutes"
    assert found(situation(points=old)) == []
    ancient = {"web01": make_point("p-1", taken_at="2027-01-01T00:00:00+00:00")}
    assert found(situation(points=ancient)) == [(Reason.POINT, Level.AMBER)]


@pytest.mark.parametrize(
    ("proof", "expected"),
    [
        (None, [(Reason.BOOT, Level.AMBER)]),
        (Proof(run="r", at=NOW, held=False), [(Reason.BOOT, Level.RED)]),
        (Proof(run="r", at=NOW - 100 * 86_400, held=True), [(Reason.BOOT, Level.AMBER)]),
        (Proof(run="r", at=NOW - 10 * 86_400, held=True), []),
    ],
)
def test_a_server_has_to_have_been_booted_here(proof: Proof | None, expected: list[tuple[Reason, Level]]) -> None:
    assert found(situation(proofs={} if proof is None else {"web01": proof})) == expected


def test_a_drill_is_not_told_to_drill_first() -> None:
    drill = World().plan(RunKind.DRILL, parse_plan(WEB))
    assert found(situation(run=drill, proofs={})) == []
    assert found(situation(run=drill, proofs={"web01": Proof(run="r", at=NOW, held=False)})) == []


def test_a_run_that_is_in_the_way_is_red() -> None:
    (finding,) = preflight(situation(in_the_way=Conflict("web01 has been failed over by failover-9", "end it")))
    assert (finding.reason, finding.level, finding.hint) == (Reason.RUN, Level.RED, "end it")


@pytest.mark.parametrize(
    ("level", "drilled", "repairs", "expected"),
    [
        ("stop", False, False, Level.RED),
        ("stop", True, False, Level.AMBER),
        ("stop", False, True, Level.AMBER),
        ("warn", False, False, Level.AMBER),
        ("warn", True, False, None),
    ],
)
def test_what_the_inventory_says_weighs_less_once_a_drill_has_shown_it(
    level: str, drilled: bool, repairs: bool, expected: Level | None
) -> None:
    base = situation()
    server = dataclasses.replace(
        base.servers["web01"], boot_findings=(BootFinding(level=level, what="MODULES=dep", way_out="most"),)
    )
    now = situation(
        servers={"web01": server},
        proofs=PROVEN if drilled else {},
        facts=dataclasses.replace(base.facts, repairs=repairs),
    )
    said = [finding.level for finding in preflight(now) if "MODULES=dep" in finding.text]
    assert said == ([] if expected is None else [expected])


@pytest.mark.parametrize(
    ("missing", "proof", "expected"),
    [
        (["viostor.sys", "netkvm.inf"], None, True),
        ([], None, False),
        (["viostor.sys"], Proof(run="r", at=NOW, held=False), True),
        (["viostor.sys"], Proof(run="r", at=NOW, held=True), False),
    ],
)
def test_a_windows_that_never_came_up_here_needs_drivers(
    missing: list[str], proof: Proof | None, expected: bool
) -> None:
    now = situation(missing_drivers={"web01": missing}, proofs={} if proof is None else {"web01": proof})
    said = [finding for finding in preflight(now) if "runs Windows" in finding.text]
    assert bool(said) is expected
    for finding in said:
        assert finding.level is Level.AMBER
        assert missing[0] in finding.text
        assert "DATA/drivers/web01" in finding.hint


@pytest.mark.parametrize(
    ("at_home", "planned", "unknown"),
    [
        ({"cpus": None, "memory_mib": None}, "", "how many processors and how much memory"),
        ({"cpus": None, "memory_mib": 4096}, "", "how many processors"),
        ({"cpus": None, "memory_mib": None}, "cpus: 2, ", "how much memory"),
        ({"cpus": None, "memory_mib": None}, "cpus: 2, memory_mib: 512, ", None),
        ({"cpus": None, "memory_mib": None}, "size: small, ", None),
        ({"cpus": 2, "memory_mib": 4096}, "", None),
    ],
)
def test_a_server_of_which_nobody_knows_the_size_has_its_plan_say_it(
    at_home: dict[str, int | None], planned: str, unknown: str | None
) -> None:
    plan = parse_plan(WEB.replace("memory_mib: 4096, ", planned))
    server = dataclasses.replace(situation().servers["web01"], **at_home)
    world = World()
    world.sizes = {"small": Size(cpus=1, memory_mib=1024)}
    world.control.servers["web01"] = server
    now = situation(run=world.plan(RunKind.FAILOVER, plan), servers={"web01": server})
    now = dataclasses.replace(now, plan=plan)
    said = [finding for finding in preflight(now) if "nobody knows" in finding.text]
    assert [finding.text.partition(" web01 ")[0].removeprefix("nobody knows ") for finding in said] == (
        [] if unknown is None else [unknown]
    )
    for finding in said:
        assert (finding.level, finding.reason) == (Level.AMBER, Reason.MEMORY)
        assert "cpus and memory_mib in its plan" in finding.hint


@pytest.mark.parametrize(
    ("devices", "expected"),
    [("automatic", "it starts on AHCI disks and an e1000e card"), ("virtio", "it does not start")],
)
def test_what_becomes_of_a_windows_without_drivers_depends_on_what_its_plan_says(devices: str, expected: str) -> None:
    plan = parse_plan(WEB.replace("memory_mib: 4096, ", f"devices: {devices}, "))
    now = situation(plan, missing_drivers={"web01": ["viostor.sys"]}, proofs={})
    assert [expected in finding.text for finding in preflight(now) if "runs Windows" in finding.text] == [True]


def test_a_windows_needs_what_its_repair_is_made_with() -> None:
    windows = dataclasses.replace(situation().servers["web01"], windows=True)
    now = situation(servers={"web01": windows}, missing_packages=["python3-hivex", "ntfs-3g"])
    (finding,) = preflight(now)
    assert (finding.level, finding.hint) == (
        Level.AMBER,
        "on the service's machine: apt-get install python3-hivex ntfs-3g",
    )
    assert found(situation(missing_packages=["python3-hivex"])) == []


def test_the_sites_space_memory_and_objections_count() -> None:
    tight = SiteFacts(name="local", free_bytes=ADVISED_BYTES_PER_INSTANCE - 1, free_memory_mib=512)
    assert found(situation(facts=tight)) == [(Reason.SPACE, Level.AMBER), (Reason.MEMORY, Level.AMBER)]
    full = dataclasses.replace(tight, free_bytes=1, free_memory_mib=None)
    assert found(situation(facts=full)) == [(Reason.SPACE, Level.RED)]
    objections = {"web01": ["port 80 of this machine is in use"]}
    assert found(situation(objections=objections)) == [(Reason.SITE, Level.RED)]


def test_a_server_that_gets_far_less_memory_than_at_home_is_amber() -> None:
    plan = parse_plan(WEB.replace("memory_mib: 4096, ", ""))
    base = situation(plan)
    large = dataclasses.replace(base.servers["web01"], memory_mib=65_536)
    assert found(situation(plan, servers={"web01": large})) == [(Reason.MEMORY, Level.AMBER)]
    copies = World().plan(RunKind.CLONE, plan, Order(copies=3))
    assert found(situation(plan, run=copies, servers={"web01": large})) == [(Reason.MEMORY, Level.AMBER)], "once"


def test_an_address_that_another_failover_has_is_red() -> None:
    plan = parse_plan(WEB.replace("memory_mib: 4096", "address: 10.0.0.7/24"))
    assert found(situation(plan, taken={"10.0.0.7": "failover-9"})) == [(Reason.ADDRESS, Level.RED)]
    assert found(situation(plan, taken={"10.0.0.8": "failover-9"})) == []


@pytest.mark.parametrize("gates", ["", "gates: [{heartbeat: {}}]"])
def test_without_a_gate_that_a_drill_can_look_at_nobody_would_know(gates: str) -> None:
    plan = parse_plan(f"{{plan: p, groups: [{{servers: [{{name: web01, {gates}}}]}}]}}")
    assert found(situation(plan)) == [(Reason.GATE, Level.AMBER)]


def test_scripts_caps_and_prices_count_and_red_comes_first() -> None:
    unknown = add_up([Price(memory_mib=1, cpus=1, known=False)], disk_bytes=1)
    now = situation(price=unknown, over_caps=["too many"], missing_scripts=["no script"], proofs={})
    assert found(now) == [
        (Reason.SCRIPT, Level.RED),
        (Reason.CAP, Level.RED),
        (Reason.BOOT, Level.AMBER),
        (Reason.PRICE, Level.AMBER),
    ]
    assert worst(preflight(now)) is Level.RED
