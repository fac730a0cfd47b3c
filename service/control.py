"""What runs need of the service, over its store: recovery.control.Control."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

from agent.protocol.errors import Conflict
from agent.protocol.messages import Point
from recovery.control import CommandState, Server
from service.identity.as_server import server_of
from service.identity.ownership import (
    given_back,
    handed_home,
    handed_to_instance,
    normalized,
    settled,
    source_retired,
)
from service.store.audit import AuditStore
from service.store.commands import CommandStore
from service.store.points import PointStore
from service.store.servers import ServerStore


class Capture(Protocol):
    """The receiver's: a point of a stopped instance; see recovery.control.Control.capture."""

    def __call__(self, server: Server, instance_id: str, label: str, request_id: str) -> str: ...


class ServiceControl:
    """`end_push` closes a server's open push session, if there is one, saying why. `points_known` is set once the rows
    of points say what the site holds: runs go on before that, and wait for it where they ask for points."""

    def __init__(
        self,
        servers: ServerStore,
        points: PointStore,
        commands: CommandStore,
        audit: AuditStore,
        capture: Capture,
        end_push: Callable[[str, str], None],
        points_known: threading.Event | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._servers = servers
        self._points = points
        self._commands = commands
        self._audit = audit
        self._capture = capture
        self._end_push = end_push
        self._points_known = points_known
        self._now = now

    def server(self, tenant: str, name: str) -> Server:
        return server_of(self._servers.by_name(tenant, name), self._now())

    def points(self, server_id: str) -> list[Point]:
        self._await_points()
        return self._points.newest_first(server_id)

    def hand_to_instance(self, server_id: str, machine_id: str, run_id: str, epoch: int | None = None) -> int:
        now, machine_id = self._now(), normalized(machine_id)
        row = self._servers.change(server_id, lambda server: handed_to_instance(server, machine_id, run_id, now, epoch))
        self._dismiss(server_id, f"{row.name} was failed over by {run_id}")
        return row.epoch

    def hand_home(self, server_id: str, instance_machine_id: str, run_id: str) -> int:
        now, machine_id = self._now(), normalized(instance_machine_id)
        row = self._servers.change(server_id, lambda server: handed_home(server, machine_id, run_id, now))
        if row.failback_run != run_id:
            raise Conflict(
                f"{row.name} is not machine {machine_id} any more (epoch {row.epoch}), so {run_id} cannot hand it home",
                f"see who has it: understudy servers; then call it off: understudy end {run_id}",
            )
        self._dismiss(server_id, f"{row.name} was handed home by {run_id}")
        return row.epoch

    def give_back(self, server_id: str, instance_machine_id: str, run_id: str) -> int:
        now, machine_id = self._now(), normalized(instance_machine_id)
        row = self._servers.change(server_id, lambda server: given_back(server, machine_id, run_id, now))
        self._dismiss(server_id, f"{row.name} was given back by {run_id}")
        return row.epoch

    def retire_source(self, server_id: str, instance_machine_id: str, run_id: str) -> None:
        now, machine_id = self._now(), normalized(instance_machine_id)
        row = self._servers.change(server_id, lambda server: source_retired(server, machine_id, now))
        self._audit.add(row.tenant, "service", "server.moved", f"{row.name} is machine {machine_id} by {run_id}")

    def request_fence(self, server_id: str, request_id: str) -> None:
        row = self._servers.get(server_id)
        self._commands.add(request_id, row.tenant, server_id, "fence", None)

    def release(self, server_id: str, request_id: str) -> None:
        row = self._servers.get(server_id)
        self._commands.add(request_id, row.tenant, server_id, "unfence", None)

    def home_arrived(self, server_id: str, run_id: str) -> bool:
        row = self._servers.get(server_id)
        return row.failback_run == run_id and row.home_arrived

    def settle(self, server_id: str, run_id: str) -> None:
        self._servers.change(server_id, lambda server: settled(server, run_id, self._now()))

    def request_point(self, server_id: str, label: str, request_id: str) -> None:
        row = self._servers.get(server_id)
        self._commands.add(request_id, row.tenant, server_id, "push", label)

    def request_command(self, server_id: str, name: str, request_id: str) -> None:
        row = self._servers.get(server_id)
        self._commands.add(request_id, row.tenant, server_id, "exec", name)

    def request_state(self, request_id: str) -> CommandState:
        row = self._commands.get(request_id)
        return CommandState(point=row.point, output=row.output, error=row.error)

    def capture(self, server_id: str, instance_id: str, label: str, request_id: str) -> str:
        self._await_points()
        server = server_of(self._servers.get(server_id), self._now())
        return self._capture(server, instance_id, label, request_id)

    def pulled_volumes(self, point_id: str) -> set[int]:
        return self._points.pulled_volumes(point_id)

    def pulled_bytes(self, point_id: str) -> int:
        return self._points.pulled_bytes(point_id)

    def audit(self, tenant: str, action: str, detail: str) -> None:
        self._audit.add(tenant, "service", action, detail)

    def _await_points(self) -> None:
        if self._points_known is not None:
            self._points_known.wait()

    def _dismiss(self, server_id: str, because: str) -> None:
        """What the owner before was asked for, or is sending, has no future."""
        self._commands.cancel(server_id, because)
        self._end_push(server_id, because)
