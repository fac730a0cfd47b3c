"""A service and a site in memory, for tests of what recovery decides: the real site has its own contract suite.

All effects are counted, so that "done once" can be told from "asked twice". `World.events` is the one history.
"""

from __future__ import annotations

import copy
import io
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, cast

from agent.protocol.errors import Conflict, NotFound, UnderstudyError
from agent.protocol.messages import Point, PointVolume
from recovery.actions import Repairer, RepairJob
from recovery.checks import SiteFacts
from recovery.control import CommandState, Server
from recovery.drills.witness import Witness
from recovery.executor import Executor
from recovery.homeward import plan_failback
from recovery.planner import Order, plan_failover
from recovery.plans import Plan, default_plan
from recovery.runs import Run, RunKind, RunState, Step, StepState
from recovery.scripts import Scripts
from recovery.sites.contract import Capacity, Instance, InstanceSpec, InstanceState, Price, Site, VolumeKey

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


def make_point(
    point_id: str, server: str = "web01", taken_at: str = "2027-01-15T07:00:00+00:00", volumes: int = 1
) -> Point:
    disks = [PointVolume(path=f"/dev/vd{n}", size_bytes=1 << 30, block_bytes=65536, root="00") for n in range(volumes)]
    return Point(
        id=point_id,
        server=server,
        taken_at=taken_at,
        consistency="crash",
        completeness="scanned",
        root="00",
        size_bytes=(1 << 30) * volumes,
        sent_bytes=0,
        epoch=1,
        volumes=disks,
    )


def make_server(name: str = "web01") -> Server:
    return Server(
        id=f"id-{name}",
        tenant="acme",
        name=name,
        state="protected",
        epoch=1,
        owner="home",
        last_seen_seconds=1.0,
    )


class MemoryStore:
    """Keeps runs as JSON, as a database would; `before_save` and `after_save` are where a service may be killed."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Any]] = {}
        self.before_save: Callable[[], None] = lambda: None
        self.after_save: Callable[[], None] = lambda: None

    def add(self, run: Run) -> None:
        self.before_save()
        if run.id in self.rows:
            raise Conflict(f"run {run.id} exists")
        self.rows[run.id] = json.loads(json.dumps(asdict(run)))
        self.after_save()

    def get(self, run_id: str) -> Run:
        if run_id not in self.rows:
            raise NotFound(f"no run {run_id}")
        row = copy.deepcopy(self.rows[run_id])
        steps = [Step(**{**step, "state": StepState(step["state"])}) for step in row.pop("steps")]
        return Run(**{**row, "kind": RunKind(row["kind"]), "state": RunState(row["state"]), "steps": steps})

    def runs(self, tenant: str | None = None) -> list[Run]:
        return [self.get(run_id) for run_id in reversed(self.rows) if tenant in (None, self.rows[run_id]["tenant"])]

    def live(self, tenant: str) -> list[Run]:
        runs = self.runs(tenant)
        live = {run.id for run in runs if run.state is not RunState.ENDED}
        return [run for run in runs if run.id in live or run.failover_run in live]

    def failbacks(self, failover_id: str) -> list[Run]:
        return [run for run in self.runs() if run.failover_run == failover_id]

    def unfinished(self) -> list[Run]:
        return [run for run in reversed(self.runs()) if run.state in (RunState.RUNNING, RunState.ENDING)]

    def live_drills(self) -> list[Run]:
        return [run for run in self.runs()[::-1] if run.kind is RunKind.DRILL and run.state is not RunState.ENDED]

    def save_step(self, run_id: str, position: int, step: Step) -> None:
        self.save_steps(run_id, {position: step})

    def save_steps(self, run_id: str, steps: Mapping[int, Step]) -> None:
        self.before_save()
        row = self.rows[run_id]
        for position, step in steps.items():
            row["steps"][position] = json.loads(json.dumps(asdict(step)))
        row["version"] += 1
        self.after_save()

    def save_committed(self, run_id: str, at: float) -> None:
        self.before_save()
        self.rows[run_id] |= {"committed_at": at}
        self.after_save()

    def save_state(self, run_id: str, state: RunState, ended_at: float | None) -> None:
        self.before_save()
        self.rows[run_id] |= {"state": state.value, "ended_at": ended_at}
        self.after_save()


@dataclass
class MemorySite:
    """Instances only. `console_text` is what each writes; `stubborn` ones ignore that many requests to shut down."""

    events: list[str]
    name: str = "memory"
    instances_by_id: dict[str, Instance] = field(default_factory=dict)
    specs: dict[str, InstanceSpec] = field(default_factory=dict)
    console_text: str = "GRUB\nDebian GNU/Linux 12\nweb01 login: "
    stubborn: int = 0
    before: Callable[[str], None] = lambda what: None
    on_console: Callable[[], None] = lambda: None
    per_hour: float | None = None

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


class MemoryControl:
    """One tenant. Calls repeated for the same run and server are found again, as the contract asks."""

    def __init__(self, events: list[str], *names: str) -> None:
        self.events = events
        self.servers = {name: make_server(name) for name in names}
        self.points_by_server = {
            server.id: [make_point(f"p-{server.name}-1", server.name)] for server in self.servers.values()
        }
        self.handovers: dict[tuple[str, str, str], int] = {}
        self.requests: dict[str, CommandState] = {}
        self.captures: dict[str, str] = {}
        self.pulled: dict[str, set[int]] = {}
        self.arrived: set[str] = set()
        self.audits: list[str] = []
        self.agent_answers = True
        self.command_ends = CommandState(output="fine")
        self.before: Callable[[str], None] = lambda what: None

    def server(self, tenant: str, name: str) -> Server:
        if name not in self.servers:
            raise NotFound(f"no server {name}")
        return self.servers[name]

    def _change(self, server_id: str, **changes: Any) -> Server:
        (name,) = [server.name for server in self.servers.values() if server.id == server_id]
        self.servers[name] = replace(self.servers[name], **changes)
        return self.servers[name]

    def points(self, server_id: str) -> list[Point]:
        return list(self.points_by_server[server_id])

    def add_point(self, server_id: str, point_id: str, epoch: int = 1) -> str:
        self.points_by_server[server_id].insert(0, replace(make_point(point_id), epoch=epoch))
        return point_id

    def _hand(self, what: str, server_id: str, run_id: str, state: str, owner: str | None) -> int:
        self.before(what)
        key = (what, server_id, run_id)
        if key not in self.handovers:
            self.handovers[key] = self._change(server_id).epoch + 1
            self._change(server_id, epoch=self.handovers[key], state=state, owner=owner)
            self.events.append(what)
        return self.handovers[key]

    def hand_to_instance(self, server_id: str, machine_id: str, run_id: str, epoch: int | None = None) -> int:
        now = next(server for server in self.servers.values() if server.id == server_id)
        if epoch not in (None, now.epoch) and ("hand to the instance", server_id, run_id) not in self.handovers:
            raise Conflict(f"{now.name} has changed hands since")
        return self._hand("hand to the instance", server_id, run_id, "failed_over", machine_id)

    def hand_home(self, server_id: str, instance_machine_id: str, run_id: str) -> int:
        return self._hand("hand home", server_id, run_id, "failing_back", None)

    def give_back(self, server_id: str, instance_machine_id: str, run_id: str) -> int:
        if not any(server.owner == instance_machine_id for server in self.servers.values()):
            return 0
        return self._hand("give back", server_id, run_id, "protected", "home")

    def retire_source(self, server_id: str, instance_machine_id: str, run_id: str) -> None:
        self.before("retire the source")
        if self._change(server_id).state != "protected":
            self._change(server_id, state="protected")
            self.events.append("retire the source")

    def request_fence(self, server_id: str, request_id: str) -> None:
        self._request("fence", request_id)

    def release(self, server_id: str, request_id: str) -> None:
        self._request("release", request_id)

    def _request(self, what: str, request_id: str) -> None:
        self.before(what)
        if request_id not in self.requests:
            self.events.append(what)
            self.requests[request_id] = self.command_ends

    def home_arrived(self, server_id: str, run_id: str) -> bool:
        return server_id in self.arrived

    def settle(self, server_id: str, run_id: str) -> None:
        self.before("settle")
        if self._change(server_id).state != "protected":
            self._change(server_id, state="protected")
            self.events.append("settle")

    def request_point(self, server_id: str, label: str, request_id: str) -> None:
        self.before("request")
        if request_id not in self.requests:
            self.events.append("request a point")
            self.requests[request_id] = CommandState()
            if self.agent_answers:
                self.requests[request_id] = CommandState(
                    point=self.add_point(server_id, f"p-agent-{len(self.requests)}")
                )

    def request_command(self, server_id: str, name: str, request_id: str) -> None:
        self.before("request a command")
        if request_id not in self.requests:
            self.events.append(f"run {name}")
            self.requests[request_id] = self.command_ends

    def request_state(self, request_id: str) -> CommandState:
        return self.requests[request_id]

    def capture(self, server_id: str, instance_id: str, label: str, request_id: str) -> str:
        self.before("capture")
        if request_id not in self.captures:
            self.events.append("capture")
            self.captures[request_id] = self.add_point(server_id, f"p-final-{len(self.captures) + 1}")
        return self.captures[request_id]

    def pulled_volumes(self, point_id: str) -> set[int]:
        return self.pulled.get(point_id, set())

    def pulled_bytes(self, point_id: str) -> int:
        return 1000 * len(self.pulled_volumes(point_id))

    def audit(self, tenant: str, action: str, detail: str) -> None:
        self.audits.append(f"{action}: {detail}")


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
            name="memory", free_bytes=1 << 40, repairs=self.repairer is not None, witnesses=self.witness is not None
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
