"""python -m bench.planning: 200 servers in one plan; planning, and what the executor itself costs a step.

Instances are not real here: they are up at once, so that what is left is ours. Runs and steps are stored in a real
SQLite database, synced to disk, as a service does; how long one such transaction takes is told beside it.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

from sqlalchemy import update

from agent.protocol.messages import Point, PointVolume
from recovery.checks import SiteFacts
from recovery.control import Server
from recovery.executor import Executor
from recovery.planner import SeededIds, new_seed, plan_failover
from recovery.plans import Plan, parse_plan
from recovery.runs import Run, RunKind, RunState, StepState
from recovery.sites.contract import Instance, InstanceSpec, InstanceState, Site
from service.receiver.manifest import Manifest
from service.store.database import Database, sqlite_url
from service.store.points import PointStore
from service.store.runs import RunRows
from service.store.schema import runs as run_table
from service.store.tenants import ensure_tenant

SERVERS, GROUPS, POINTS = 200, 4, 48
PLAN_LIMIT_SECONDS, STEP_LIMIT_SECONDS = 1.0, 0.005


class InstantSite:
    """Every instance is up at once, and its console says so."""

    name = "instant"

    def launch(self, spec: InstanceSpec) -> Instance:
        return self.watch(spec.instance_id)

    def watch(self, instance_id: str) -> Instance:
        return Instance(instance_id=instance_id, run_id="", server_id="", state=InstanceState.RUNNING, machine_id="")

    def console(self, instance_id: str, last_bytes: int = 0) -> str:
        return "login:"

    def end(self, instance_id: str) -> None:
        return None


class NoControl:
    def audit(self, tenant: str, action: str, detail: str) -> None:
        return None


def large_plan() -> str:
    """As YAML: groups of servers, each with a gate."""
    gate = {"console": {"text": "login:"}}
    names = [f"server{number:03}" for number in range(SERVERS)]
    size = SERVERS // GROUPS
    groups = [
        {"servers": [{"name": name, "gates": [gate]} for name in names[at : at + size]]}
        for at in range(0, SERVERS, size)
    ]
    return json.dumps({"plan": "large", "one_instant_within_seconds": 60, "groups": groups})


def inventory(plan: Plan) -> tuple[dict[str, Server], dict[str, list[Point]]]:
    servers, points = {}, {}
    for number, wanted in enumerate(plan.servers):
        servers[wanted.name] = Server(
            id=f"id-{wanted.name}",
            tenant="default",
            name=wanted.name,
            state="protected",
            epoch=1,
            owner="m",
            last_seen_seconds=1.0,
        )
        points[wanted.name] = [_point(wanted.name, age, number % 50) for age in range(POINTS)]
    return servers, points


def _point(server: str, age: int, second: int) -> Point:
    volume = PointVolume(path="/dev/vda", size_bytes=1 << 34, block_bytes=65536, root="00")
    return Point(
        id=f"pt-{server}-{age}",
        server=server,
        taken_at=f"2027-01-{15 - age // 24:02}T{23 - age % 24:02}:00:{second:02}+00:00",
        consistency="crash",
        completeness="tracked",
        root="00",
        size_bytes=1 << 34,
        sent_bytes=0,
        epoch=1,
        volumes=[volume],
    )


def keep_points(database: Database, run: Run, servers: dict[str, Server], points: dict[str, list[Point]]) -> None:
    """The rows of the points that runs boot: a run pins them."""
    store = PointStore(database)
    for launch in run.launches():
        name = launch.args["server"]
        point = next(point for point in points[name] if point.id == launch.args["point"])
        store.add(Manifest(point=point, server_id=servers[name].id, tenant="default"))


def timed(work: Callable[[], object], rounds: int) -> float:
    """Median seconds."""
    found = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def perform(database: Database, run: Run) -> float:
    """Seconds from the button to the end of the last step."""
    store = RunRows(database)
    executor = Executor(store, cast("Site", InstantSite()), NoControl())  # type: ignore[arg-type]
    began = time.perf_counter()
    executor.start(run)
    done = executor.wait(run.id)
    seconds = time.perf_counter() - began
    assert done.state is RunState.SUCCEEDED, [step.error for step in done.steps if step.state is StepState.FAILED][:3]
    return seconds


def one_commit(database: Database) -> None:
    with database.write() as connection:
        connection.execute(update(run_table).values(version=run_table.c.version + 1))


def main(rounds: int = 5) -> int:
    text = large_plan()
    plan = parse_plan(text)
    servers, points = inventory(plan)
    facts = SiteFacts(name="instant", free_bytes=1 << 50)

    def planned() -> Run:
        return plan_failover(
            parse_plan(text), RunKind.DRILL, servers, points, None, facts, SeededIds(new_seed()), time.time()
        )

    plan_seconds = timed(planned, rounds)
    with tempfile.TemporaryDirectory(prefix="planning-") as folder:
        database = Database.open(sqlite_url(Path(folder) / "db.sqlite"))
        with database.write() as connection:
            ensure_tenant(connection, "default", 0.0)
        keep_points(database, planned(), servers, points)
        steps = len(planned().steps)
        step_seconds = statistics.median(perform(database, planned()) for _ in range(rounds)) / steps
        commit_seconds = timed(lambda: one_commit(database), 50)
        database.close()
    holds = plan_seconds < PLAN_LIMIT_SECONDS and step_seconds < STEP_LIMIT_SECONDS
    print(f"{SERVERS} servers in {GROUPS} groups, {POINTS} points each, {steps} steps; medians of {rounds}\n")
    print("| what | found | limit | holds |\n| --- | --- | --- | --- |")
    print(
        f"| reading and planning, with one instant for all | {plan_seconds * 1e3:.0f} ms | {PLAN_LIMIT_SECONDS:g} s "
        f"| {'yes' if plan_seconds < PLAN_LIMIT_SECONDS else '**no**'} |"
    )
    print(
        f"| the executor's own time a step | {step_seconds * 1e3:.2f} ms | {STEP_LIMIT_SECONDS * 1e3:g} ms "
        f"| {'yes' if step_seconds < STEP_LIMIT_SECONDS else '**no**'} |"
    )
    print(
        f"| one transaction on this disk (steps share them) | {commit_seconds * 1e3:.2f} ms | | |",
        flush=True,
    )
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
