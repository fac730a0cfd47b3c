from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.protocol.errors import UsageError
from recovery.gates import CommandGate, ConsoleGate, HeartbeatGate, HttpGate, TcpGate
from recovery.plans import (
    Caps,
    FailureRule,
    Group,
    Plan,
    PlanServer,
    Script,
    default_plan,
    dump_plan,
    parse_plan,
)
from recovery.plans.model import in_order

WEB01 = """\
plan: web01
groups:
  - name: all
    servers:
      - name: web01
        cpus: 2
        memory_mib: 768
        ports: {8000: 0}
        gates:
          - http: {port: 8000, path: /health, status: 200, contains: "ok", timeout_seconds: 60}
          - console: {text: "login:"}
"""


def test_a_plan_is_read_with_all_it_says_and_defaults_for_the_rest() -> None:
    gates = (
        HttpGate(port=8000, path="/health", status=200, contains="ok", timeout_seconds=60.0),
        ConsoleGate(text="login:", timeout_seconds=300.0),
    )
    server = PlanServer(name="web01", cpus=2, memory_mib=768, ports={8000: 0}, gates=gates)
    assert parse_plan(WEB01) == Plan(name="web01", groups=(Group(name="all", servers=(server,)),))
    assert parse_plan("{plan: a, groups: [{servers: [{name: b}]}]}").servers == (PlanServer(name="b"),)


def test_a_gate_on_a_port_that_is_not_named_adds_it() -> None:
    server = PlanServer(name="a", ports={22: 2222}, gates=(HttpGate(port=80), HttpGate(port=22)))
    assert server.all_ports == {22: 2222, 80: 0}


def test_a_server_without_a_plan_waits_for_its_login_prompt() -> None:
    (server,) = default_plan("web01").servers
    assert server.name == "web01"
    assert server.gates == (ConsoleGate(text="login:", timeout_seconds=300.0),)


def test_a_windows_without_a_plan_waits_for_what_its_first_start_says() -> None:
    (server,) = default_plan("web01", windows=True).servers
    assert server.gates == (ConsoleGate(text="understudy: Windows is up", timeout_seconds=900.0),)


def test_all_that_a_plan_may_say_is_read() -> None:
    text = Path("docs/plans.md").read_text().split("```yaml\n")[1].split("```")[0]
    plan = parse_plan(text, "docs/plans.md")
    assert plan.name == "shop"
    assert plan.on_failure == FailureRule(2)
    assert plan.caps == Caps(instances=10, price_per_hour=5.0)
    databases, queue, web = plan.groups
    assert (databases.wait_seconds, queue.after, web.after) == (10.0, (), ("databases", "queue"))
    assert {type(gate) for server in plan.servers for gate in server.gates} == {
        HttpGate, TcpGate, ConsoleGate, HeartbeatGate, CommandGate
    }  # fmt: skip
    assert plan.servers[0].addresses == {"drill": "dhcp", "failover": "same"}
    assert parse_plan(dump_plan(plan)) == plan


@pytest.mark.parametrize("text", ["stop", "continue", "retry 3", "retry 100, then continue"])
def test_a_rule_for_failures_is_written_as_it_is_read(text: str) -> None:
    rule = FailureRule.parse(text)
    assert rule is not None
    assert FailureRule.parse(str(rule)) == rule


@pytest.mark.parametrize("text", ["retry", "retry 101", "retry -1", "ask", "retry 2 then continue", ""])
def test_what_is_no_rule_for_failures_is_none(text: str) -> None:
    assert FailureRule.parse(text) is None


names = st.text(st.characters(categories=["L", "N"], include_characters=" .-_"), min_size=1, max_size=20)
programs = st.from_regex(r"[a-z][a-z.-]{0,10}", fullmatch=True)
seconds = st.floats(0.5, 86_400)
rules = st.none() | st.builds(FailureRule, st.integers(0, 100), st.booleans())
gates = st.one_of(
    st.builds(ConsoleGate, text=names, timeout_seconds=seconds),
    st.builds(
        HttpGate,
        port=st.integers(1, 65_535),
        path=st.from_regex(r"/[a-z?=&%0-9#:]{0,20}", fullmatch=True),
        status=st.integers(100, 599),
        contains=st.none() | names,
        host=st.sampled_from([None, "shop.example.com", "shop:8080"]),
        timeout_seconds=seconds,
    ),
    st.builds(TcpGate, port=st.integers(1, 65_535), timeout_seconds=seconds),
    st.builds(HeartbeatGate, timeout_seconds=seconds),
    st.builds(CommandGate, name=programs, timeout_seconds=seconds),
)
scripts = st.lists(
    st.builds(
        Script,
        argv=st.tuples(programs, names),
        in_drills=st.booleans(),
        timeout_seconds=seconds,
        on_failure=rules,
    ),
    max_size=2,
).map(tuple)
servers = st.builds(
    PlanServer,
    name=names,
    cpus=st.none() | st.integers(1, 64),
    memory_mib=st.none() | st.integers(64, 9_999),
    ports=st.dictionaries(st.integers(1, 65_535), st.just(0), max_size=3),
    addresses=st.dictionaries(st.sampled_from(["drill", "failover"]), st.sampled_from(["dhcp", "same"])),
    gates=st.lists(gates, max_size=3).map(tuple),
    repair=st.booleans(),
    devices=st.sampled_from(["automatic", "virtio", "ahci"]),
    on_failure=rules,
)


@st.composite
def group_lists(draw: st.DrawFn) -> tuple[Group, ...]:
    groups: list[Group] = []
    found = draw(st.lists(servers, min_size=1, max_size=6, unique_by=lambda server: server.name))
    for number, server in enumerate(found):
        earlier = [group.name for group in groups if group.name is not None]
        after = draw(st.none() | st.lists(st.sampled_from(earlier), unique=True).map(tuple)) if earlier else None
        groups.append(
            Group(
                servers=(server,),
                name=draw(st.sampled_from([None, f"g{number}"])),
                after=after,
                wait_seconds=draw(st.just(0.0) | seconds),
                pre=draw(scripts),
                post=draw(scripts),
            )
        )
    return tuple(groups)


plans = st.builds(
    Plan,
    name=st.just("a.plan-1"),
    groups=group_lists(),
    point=st.sampled_from(["latest", "latest-bootable", "2026-01-31T14:30:00Z"]),
    one_instant_seconds=st.none() | seconds,
    rpo_seconds=st.none() | seconds,
    on_failure=rules.map(lambda rule: rule or FailureRule()),
    networks=st.dictionaries(st.sampled_from(["drill", "failover"]), names),
    caps=st.builds(Caps, instances=st.none() | st.integers(1, 99), price_per_hour=st.none() | st.floats(0.5, 1e6)),
    pre=scripts,
    post=scripts,
)


@settings(max_examples=60)
@given(plans)
def test_every_plan_is_read_back_as_it_was_written(plan: Plan) -> None:
    assert parse_plan(dump_plan(plan)) == plan


SERVER = "plan: p\ngroups:\n- servers:\n  - name: a\n"
NOBODYS = ("10.0.0.0/24", "10.0.0.255/24", "127.0.0.1/8", "0.0.0.0/0", "224.0.0.5/4", "'::1/128'")
MANY_GATES = (
    SERVER
    + f"    gates: &g [{', '.join(['{heartbeat: {}}'] * 1_000)}]\n"
    + "".join(f"  - {{name: s{number}, gates: *g}}\n" for number in range(1_000))
)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("", None, "is empty"),
        ("just words", 1, "should be fields"),
        ("plan: p\ngroups: [", 2, "not YAML"),
        ("plan: p\n\tgroups: x", 2, "not YAML"),
        ("plan: \x00", 1, "U+0000 is not allowed"),
        (SERVER + "# \x07", 5, "U+0007 is not allowed"),
        ("[" * 5_000, 1, "nested more than 30 levels deep"),
        ("plan: p\ngroups:\n" + "".join(" " * depth + "-\n" for depth in range(400)), 32, "nested more than"),
        ("groups: []\nplan: &p [*p]", 2, "should be a text, and is a list"),
        (MANY_GATES, 5, "more than 100000 entries"),
        ("x" * 300_000, None, "longer than"),
        ("groups: []", 1, "'plan' is missing"),
        ("plan: p", 1, "'groups' is missing"),
        ("plan: a/b\ngroups: []", 1, "cannot be a plan's name"),
        ("plan: ..\ngroups: []", 1, "cannot be a plan's name"),
        ("plan: p\ngroups: []", 2, "groups: is empty"),
        ("plan: p\ngroups:\n- servers: []", 3, "groups[0].servers: is empty"),
        ("plan: p\ngroups:\n- servers: x", 3, "should be a list"),
        (SERVER + "    cpu: 2", 5, "no field 'cpu'"),
        (SERVER + "    name: b", 5, "'name' is given twice"),
        (SERVER + "  - name: a", 5, "'a' is in the plan already"),
        (SERVER + "- servers:\n  - name: a", 6, "'a' is in the plan already"),
        ("plan: p\ngroups:\n- servers:\n  - name: 12", 4, "should be a text, and is a whole number"),
        (SERVER + "    cpus: many", 5, "groups[0].servers[0].cpus: should be a whole number, and is a text"),
        (SERVER + "    cpus: 0", 5, "out of range"),
        (SERVER + "    cpus: !!int x", 5, "cannot be read"),
        (SERVER + "    memory_mib: " + "9" * 5_000, 5, "cannot be read"),
        (SERVER + "    memory_mib: 01000", 5, "cannot be read"),
        (SERVER + "    memory_mib: 10:00", 5, "cannot be read"),
        (SERVER + "    ports: {0x50: 0}", 5, "cannot be read"),
        (SERVER + "rpo_seconds: 15:00.0", 5, "cannot be read"),
        (SERVER + "rpo_seconds: 15m", 5, "should be a number of seconds"),
        (SERVER + "  - name: " + "b" * 2_000, 5, "longer than 1000 characters"),
        (SERVER + "    ports: [80]", 5, "should be fields"),
        (SERVER + "    ports: {80: 99999}", 5, "out of range"),
        (SERVER + "    ports: {80: 8080, 81: 8080}", 5, "used twice"),
        (SERVER + "    size: large\n    cpus: 2", 5, "says the same as cpus"),
        (SERVER + "    address: 10.0.0.7", 5, "has no prefix length"),
        (SERVER + "    address: home", 5, "'home' is no address"),
        (
            SERVER + "    address: 10.0.0.7/24\n  - name: b\n    address: {drill: 10.0.0.7/16}",
            7,
            "10.0.0.7 is used twice, by a too",
        ),
        *((SERVER + f"    address: {nobodys}", 5, "no server can have") for nobodys in NOBODYS),
        (SERVER + "    repair: 7", 5, "should be yes or no"),
        (SERVER + "    devices: scsi", 5, "'scsi' are no devices"),
        (SERVER + "    on_failure: panic", 5, "'panic' is no rule"),
        (SERVER + "on_failure: retry 1000", 5, "is no rule"),
        (SERVER + "point: yesterday", 5, "says no point"),
        (SERVER + "caps: {instances: 0}", 5, "out of range"),
        (SERVER + "networks: {clone: x}", 5, "no field 'clone'"),
        (SERVER + "pre:\n- run: [../../bin/sh]", 6, "is no program's name"),
        (SERVER + "pre:\n- run: sh", 6, "should be a list"),
        (SERVER + "- after: [b]\n  servers:\n  - name: c", 5, "groups[1].after[0]: there is no group 'b'"),
        (SERVER + "- &g\n  servers: [{name: b}]\n- <<: *g", 7, "a plan has no `<<`"),
        (
            "plan: p\ngroups:\n- {name: a, after: [b], servers: [{name: x}]}\n"
            "- {name: b, after: [a], servers: [{name: y}]}",
            3,
            "wait for each other, so none could ever begin: a, b",
        ),
        ("plan: p\ngroups:\n- {name: a, after: [a], servers: [{name: x}]}", 3, "wait for each other"),
        (SERVER + "    gates:\n    - command: {name: /bin/sh}", 6, "no command's name"),
        (SERVER + "    gates:\n    - tcp: {}", 6, "'port' is missing"),
        (SERVER + "    gates:\n    - ping: {}", 6, "no field 'ping'"),
        (SERVER + "    gates:\n    - heartbeat", 6, "should be fields"),
        (SERVER + "    gates:\n    - {}", 6, "a gate is one of"),
        (SERVER + "    gates:\n    - http: {path: /}", 6, "'port' is missing"),
        (SERVER + "    gates:\n    - http: {port: 80, path: health}", 6, "is no path"),
        (SERVER + "    gates:\n    - http: {port: 80, host: 'a b'}", 6, "no host's name"),
        (SERVER + '    gates:\n    - http: {port: 80, host: "a\\r\\nX: y"}', 6, "not a usable text"),
        (SERVER + "    gates:\n    - http: {port: 80, contains: yes}", 6, "should be a text, and is yes or no"),
        (SERVER + "    gates:\n    - console: {text: x, timeout_seconds: .nan}", 6, "out of range"),
        (SERVER + "    gates:\n    - console: {text: ''}", 6, "not a usable text"),
    ],
)
def test_a_wrong_plan_is_refused_with_the_line_and_the_way_out(text: str, line: int | None, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_plan(text, "shop.yaml")
    assert str(caught.value).startswith(f"shop.yaml, line {line}:" if line else "shop.yaml: ")
    assert words in caught.value.message
    assert caught.value.hint


def test_empty_gates_are_allowed() -> None:
    (server,) = parse_plan(SERVER + "    gates: []").servers
    assert server.gates == ()


def test_what_needs_no_field_may_be_left_empty() -> None:
    plan = parse_plan(SERVER + "    gates:\n    - heartbeat:\n    ports:\n  wait_seconds: 0\ncaps:\npre:\n")
    assert plan == parse_plan(SERVER + "    gates:\n    - heartbeat: {}\n")


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("plan: p\ngroups:\n- servers: [web01]", "write `name: web01`"),
        (SERVER + "    gates: [heartbeat]", "write `heartbeat: {}`"),
        (SERVER + "  after: db", "write `[db]`"),
        (SERVER + "  wait_seconds: 5m", "write it in plain digits: 300, not 5m"),
        (SERVER + "  wait_seconds: -1", "use 0, up to 86400"),
    ],
)
def test_the_way_out_shows_how_it_is_written(text: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_plan(text)
    assert caught.value.hint == hint


def test_groups_are_put_in_order_in_a_time_that_grows_with_their_number() -> None:
    """By looking at each again for each, this would take minutes."""
    groups = "".join(f"- {{name: g{at}, servers: [{{name: s{at}}}]}}\n" for at in range(3_000))
    assert len(parse_plan("plan: p\ngroups:\n" + groups).groups) == 3_000
    assert in_order([[at + 1] for at in range(3_000)] + [[]]) == list(range(3_000, -1, -1))
    assert in_order([[1], [0], [], [2], [1]]) == [2, 3]
