"""What runs need of the service, in memory: servers, points, agents that answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from agent.protocol.errors import Conflict, NotFound
from agent.protocol.messages import Point, PointVolume
from recovery.control import CommandState, Server


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

    def change(self, server_id: str, **changes: Any) -> Server:
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
            self.handovers[key] = self.change(server_id).epoch + 1
            self.change(server_id, epoch=self.handovers[key], state=state, owner=owner)
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
        if self.change(server_id).state != "protected":
            self.change(server_id, state="protected")
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
        if self.change(server_id).state != "protected":
            self.change(server_id, state="protected")
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
