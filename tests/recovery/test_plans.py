from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.protocol.errors import UsageError
from recovery.gates import ConsoleGate, HttpGate
from recovery.plans import Group, Plan, PlanServer, default_plan, dump_plan, parse_plan

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


names = st.text(st.characters(categories=["L", "N"], include_characters=" .-_"), min_size=1, max_size=20)
seconds = st.floats(0.5, 86_400)
gates = st.one_of(
    st.builds(ConsoleGate, text=names, timeout_seconds=seconds),
    st.builds(
        HttpGate,
        port=st.integers(1, 65_535),
        path=st.from_regex(r"/[a-z?=&%0-9#:]{0,20}", fullmatch=True),
        status=st.integers(100, 599),
        contains=st.none() | names,
        timeout_seconds=seconds,
    ),
)
servers = st.builds(
    PlanServer,
    name=names,
    cpus=st.integers(1, 64),
    memory_mib=st.integers(64, 9_999),
    ports=st.dictionaries(st.integers(1, 65_535), st.just(0), max_size=3),
    gates=st.lists(gates, max_size=3).map(tuple),
)
some_groups = st.lists(servers, min_size=1, max_size=6, unique_by=lambda server: server.name).flatmap(
    lambda all_servers: st.integers(1, len(all_servers)).map(
        lambda cut: tuple(Group(servers=tuple(part)) for part in (all_servers[:cut], all_servers[cut:]) if part)
    )
)


@given(some_groups)
def test_every_plan_is_read_back_as_it_was_written(groups: tuple[Group, ...]) -> None:
    plan = Plan(name="a.plan-1", groups=groups)
    assert parse_plan(dump_plan(plan)) == plan


SERVER = "plan: p\ngroups:\n- servers:\n  - name: a\n"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("", None, "is empty"),
        ("just words", 1, "should be fields"),
        ("plan: p\ngroups: [", 2, "not YAML"),
        ("plan: p\n\tgroups: x", 2, "not YAML"),
        ("plan: \x00", None, "not YAML"),
        ("[" * 5_000, None, "not YAML"),
        ("x" * 300_000, None, "longer than"),
        ("groups: []", 1, "'plan' is missing"),
        ("plan: p", 1, "'groups' is missing"),
        ("plan: a/b\ngroups: []", 1, "cannot be a plan's name"),
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
        (SERVER + "    ports: [80]", 5, "should be fields"),
        (SERVER + "    ports: {80: 99999}", 5, "out of range"),
        (SERVER + "    ports: {80: 8080, 81: 8080}", 5, "used twice"),
        (SERVER + "    gates:\n    - ping: {}", 6, "no field 'ping'"),
        (SERVER + "    gates:\n    - {}", 6, "a gate is one of"),
        (SERVER + "    gates:\n    - http: {path: /}", 6, "'port' is missing"),
        (SERVER + "    gates:\n    - http: {port: 80, path: health}", 6, "is no path"),
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
