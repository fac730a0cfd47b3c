"""A service and a site in memory, for tests of what recovery decides: the real site has its own contract suite.

All effects are counted, so that "done once" can be told from "asked twice". `World.events` is the one history.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, cast

from agent.protocol.errors import Conflict, UnderstudyError
from recovery.actions import Repairer, RepairJob
from recovery.checks import SiteFacts
from recovery.drills.witness import Witness
from recovery.executor import Executor
from recovery.homeward import plan_failback
from recovery.planner import Order, plan_failover
from recovery.plans import Plan, default_plan
from recovery.runs import Run, RunKind
from recovery.scripts import Scripts
from recovery.sites.contract import Capacity, Instance, InstanceSpec, InstanceState, Price, Site, Size, VolumeKey
from tests.recovery.memory_control import MemoryControl
from tests.recovery.memory_store import MemoryStore

NOW = 1_800_000_000.0


class Killed(BaseException):
    """SIGKILL: no handler of ours sees it."""


class FakeClock:
    """Time passes when somebody waits; `on_wait` is the rest of the world, which goes on meanwhile."""

    def __init__(self) -> None:
        self.seconds = NOW
        self.on_wait: Callable[[], None] = lambda: None

    def now(self) -> float:
        return self.seconds

    def monotonic(self) -> float:
        return self.seconds - NOW

    def wait(self, interrupt: threading.Event, seconds: float) -> None:
        self.seconds += seconds
        self.on_wait()


@dataclass
class MemorySite:
    """Instances only. `console_text` is what each writes; `stubborn` ones ignore that many requests to shut down;
    `forwarder_only`: connections are taken in the place of guests that are not up yet."""

    events: list[str]
    name: str = "memory"
    instances_by_id: dict[str, Instance] = field(default_factory=dict)
    specs: dict[str, InstanceSpec] = field(default_factory=dict)
    console_text: str = "GRUB\nDebian GNU/Linux 12\nweb01 login: "
    stubborn: int = 0
    before: Callable[[str], None] = lambda what: None
    on_console: Callable[[], None] = lambda: None
    per_hour: float | None = None
    forwarder_only: bool = False

    def capacity(self) -> Capacity:
        return Capacity(free_bytes=1 << 40)

    def price(self, spec: InstanceSpec) -> Price:
        return Price(memory_mib=spec.memory_mib, cpus=spec.cpus, per_hour=self.per_hour)

    def objections(self, spec: InstanceSpec) -> list[str]:
        return []

    def make_instance(self, spec: InstanceSpec) -> Instance:
        self.before("make")
        if spec.instance_id not in self.instances_by_id:
            self.events.append(f"copy {spec.server_name}")
            self.specs[spec.instance_id] = spec
            self.instances_by_id[spec.instance_id] = _instance(spec, InstanceState.PENDING)
        return self.instances_by_id[spec.instance_id]

    def instance_volume_location(self, instance_id: str, index: int) -> str:
        return f"{instance_id}/{index}"

    def launch(self, spec: InstanceSpec) -> Instance:
        self.before("launch")
        known = self.instances_by_id.get(spec.instance_id)
        if known is None or known.state is not InstanceState.RUNNING:
            again = known is not None and known.state is InstanceState.STOPPED
            self.events.append(f"{'boot again' if again else 'boot'} {spec.server_name}")
            self.specs[spec.instance_id] = spec
            self.instances_by_id[spec.instance_id] = _instance(spec, InstanceState.RUNNING)
        return self.instances_by_id[spec.instance_id]

    def watch(self, instance_id: str) -> Instance:
        gone = Instance(instance_id=instance_id, run_id="", server_id="", state=InstanceState.GONE, machine_id="")
        return self.instances_by_id.get(instance_id, gone)

    def set_state(self, instance_id: str, state: InstanceState, detail: str = "") -> None:
        self.instances_by_id[instance_id] = replace(self.watch(instance_id), state=state, detail=detail)

    def console(self, instance_id: str, last_bytes: int = 65_536) -> str:
        self.on_console()
        return self.console_text[-last_bytes:]

    def screenshot(self, instance_id: str) -> bytes:
        if self.watch(instance_id).state is not InstanceState.RUNNING:
            raise Conflict(f"instance {instance_id} does not run")
        return b"\x89PNG of " + instance_id.encode()

    def holds_connection(self, instance_id: str, port: int) -> bool:
        return not self.forwarder_only

    def snapshot_location(self, key: VolumeKey, point_id: str) -> str:
        return f"{key.server_id}/{key.index}/{point_id}"

    def open_snapshot(self, key: VolumeKey, point_id: str) -> io.BytesIO:
        return io.BytesIO()

    def stop(self, instance_id: str) -> None:
        self.before("stop")
        self.events.append("ask to shut down")
        if self.stubborn:
            self.stubborn -= 1
            return
        if self.watch(instance_id).state is InstanceState.RUNNING:
            self.set_state(instance_id, InstanceState.STOPPED)

    def end(self, instance_id: str) -> None:
        self.before("end")
        if self.instances_by_id.pop(instance_id, None) is not None:
            self.events.append("remove")

    def instances(self) -> list[Instance]:
        return list(self.instances_by_id.values())


def _instance(spec: InstanceSpec, state: InstanceState) -> Instance:
    return Instance(
        instance_id=spec.instance_id,
        run_id=spec.run_id,
        server_id=spec.server_id,
        state=state,
        machine_id=spec.machine_id,
        addresses={guest: ("127.0.0.1", site or 40_000 + guest) for guest, site in spec.ports.items()},
        network=spec.network,
    )


class Repairs:
    """recovery.actions.Repairer that only says what it is asked. `changes`: what each repair would change."""

    def __init__(self, events: list[str], changes: int = 2) -> None:
        self.events = events
        self.changes = changes
        self.repaired: set[str] = set()
        self.before: Callable[[str], None] = lambda what: None
        self.failure: UnderstudyError | None = None

    def __call__(self, job: RepairJob) -> dict[str, Any]:
        self.before("repair")
        if self.failure is not None:
            raise self.failure
        self.events.append(f"repair {job.server}")
        self.repaired.add(job.instance_id)
        return {"changes": self.changes}

    def undo(self, job: RepairJob) -> dict[str, Any]:
        self.before("undo the repair")
        if job.instance_id in self.repaired:
            self.repaired.remove(job.instance_id)
            self.events.append(f"undo the repair of {job.server}")
        return {"note": "undone"}


class CountingIds:
    def __init__(self, start: int = 0) -> None:
        self.count = start

    def _next(self) -> int:
        self.count += 1
        return self.count

    def run(self, kind: RunKind) -> str:
        return f"{kind}-{self._next()}"

    def instance(self) -> str:
        return f"i-{self._next()}"

    def machine(self) -> str:
        return f"m-{self._next()}"


class World:
    """A store, a site, a control and a clock; executors come and go."""

    def __init__(self, *names: str) -> None:
        self.names = names or ("web01",)
        self.events: list[str] = []
        self.store = MemoryStore()
        self.site = MemorySite(self.events)
        self.control = MemoryControl(self.events, *self.names)
        self.clock = FakeClock()
        self.ids = CountingIds()
        self.sizes: dict[str, Size] = {}
        self.scripts: Scripts | None = None
        self.repairer: Repairer | None = None
        self.witness: Witness | None = None
        self.executor = self.start_service()

    def start_service(self) -> Executor:
        self.executor = Executor(
            self.store, cast("Site", self.site), self.control, self.clock, self.scripts, self.repairer, self.witness
        )
        return self.executor

    def plan(self, kind: RunKind, plan: Plan | None = None, order: Order | None = None) -> Run:
        servers = self.control.servers
        points = {name: self.control.points(server.id) for name, server in servers.items()}
        facts = SiteFacts(
            name="memory",
            free_bytes=1 << 40,
            sizes=self.sizes,
            repairs=self.repairer is not None,
            witnesses=self.witness is not None,
        )
        wanted = plan or default_plan(self.names[0])
        return plan_failover(wanted, kind, servers, points, None, facts, self.ids, self.clock.now(), order)

    def perform(self, run: Run) -> Run:
        self.executor.start(run)
        return self.executor.wait(run.id)

    def fail_over(self) -> Run:
        return self.perform(self.plan(RunKind.FAILOVER))

    def plan_failback(self, failover: Run) -> Run:
        server = self.control.server("acme", self.names[0])
        return plan_failback(self.store.get(failover.id), server, self.ids, self.clock.now())

    def people_at_home_do_their_part(self) -> None:
        """While a run waits, somebody pulls the newest point's volumes, and boots the machine once it is its turn."""

        def at_home() -> None:
            for server in self.control.servers.values():
                newest = self.control.points(server.id)[0]
                self.control.pulled[newest.id] = set(range(len(newest.volumes)))
                if server.state == "failing_back" and server.id not in self.control.arrived:
                    self.control.arrived.add(server.id)
                    self.control.add_point(server.id, f"p-home-{server.epoch}", server.epoch)

        self.clock.on_wait = at_home
