from __future__ import annotations

import dataclasses

import pytest

from agent.protocol.errors import UsageError
from recovery.checks import SiteFacts
from recovery.control import Server
from recovery.plans import Plan, parse_plan
from recovery.runs import RunKind
from recovery.sites.contract import Size
from recovery.sizing import addresses, sizes
from tests.recovery.memory_control import make_server

FACTS = SiteFacts(name="local", free_bytes=1 << 40, sizes={"small": Size(cpus=1, memory_mib=1024)})


def plan_of(*servers: str) -> Plan:
    return parse_plan(f"{{plan: p, groups: [{{servers: [{', '.join(servers)}]}}]}}")


def server(name: str, **fields: object) -> Server:
    return dataclasses.replace(make_server(name), **fields)  # type: ignore[arg-type]


def test_an_automatic_size_is_the_one_at_home() -> None:
    at_home = {"a": server("a", cpus=8, memory_mib=32_768), "b": server("b")}
    found = sizes(plan_of("{name: a}", "{name: b}"), at_home, FACTS)
    assert found == {"a": Size(cpus=8, memory_mib=32_768), "b": Size(cpus=2, memory_mib=1024)}


def test_where_the_site_has_less_memory_it_is_shared_out() -> None:
    at_home = {name: server(name, cpus=8, memory_mib=32_768) for name in "abc"}
    facts = dataclasses.replace(FACTS, free_memory_mib=10_000, cpus=2)
    found = sizes(plan_of("{name: a}", "{name: b}", "{name: c, memory_mib: 4000}"), at_home, facts)
    assert found["a"] == found["b"] == Size(cpus=2, memory_mib=2000)
    assert found["c"] == Size(cpus=2, memory_mib=4000), "what the plan says is not changed"


def test_a_named_size_is_the_sites_and_others_are_refused_naming_those_there_are() -> None:
    at_home = {"a": server("a")}
    assert sizes(plan_of("{name: a, size: small}"), at_home, FACTS)["a"] == Size(cpus=1, memory_mib=1024)
    with pytest.raises(UsageError, match=r"no size 'huge' for a \(known are automatic, small\)"):
        sizes(plan_of("{name: a, size: huge}"), at_home, FACTS)


def test_an_address_is_the_one_at_home_or_the_plans_by_mode() -> None:
    at_home = {"a": server("a", address="192.0.2.7/24"), "b": server("b")}
    plan = plan_of("{name: a, address: {failover: same}}", "{name: b, address: 10.0.0.7/24}")
    assert addresses(plan, RunKind.FAILOVER, at_home) == {"a": "192.0.2.7/24", "b": "10.0.0.7/24"}
    assert addresses(plan, RunKind.DRILL, at_home) == {"b": "10.0.0.7/24"}


def test_an_address_that_two_would_have_or_nobody_knows_is_refused() -> None:
    plan = plan_of("{name: a, address: same}", "{name: b, address: 192.0.2.7/16}")
    with pytest.raises(UsageError, match=r"a and b would both have the address 192.0.2.7"):
        addresses(plan, RunKind.FAILOVER, {"a": server("a", address="192.0.2.7/24"), "b": server("b")})
    with pytest.raises(UsageError, match="its inventory does not tell it"):
        addresses(plan, RunKind.FAILOVER, {"a": server("a"), "b": server("b")})
