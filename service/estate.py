"""What a tenant has, as plans and checks need it: each part read when it is first asked for, and once."""

from __future__ import annotations

import functools
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from agent.protocol.errors import NotFound, UsageError
from agent.protocol.messages import Point
from recovery.checks import SiteFacts
from recovery.control import Server
from recovery.plans import Caps, Plan, default_plan, parse_plan
from recovery.preflight import Proof
from recovery.readiness import Booted, last_boots
from recovery.repair.job import BootRepair
from recovery.runs import Run
from recovery.sites.contract import Site
from service.identity.as_server import server_of
from service.store.plans import PlanStore
from service.store.points import PointStore
from service.store.proofs import ProofStore
from service.store.runs import RunRows
from service.store.servers import ServerStore

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where an estate is read. `repairer`: boot repair, where there is one. `witnesses`: is evidence of drills kept?"""

    servers: ServerStore
    points: PointStore
    plans: PlanStore
    runs: RunRows
    proofs: ProofStore
    site: Site
    repairer: BootRepair | None = None
    witnesses: bool = False


class Estate:
    """For one request, or one round of checks. All of it blocks; servers are named by their names everywhere.

    `now` is the instant of the look, in seconds since 1970."""

    def __init__(self, tenant: str, sources: Sources, now: float) -> None:
        self.tenant = tenant
        self.now = now
        self._sources = sources
        self._points: dict[str, list[Point]] = {}

    @functools.cached_property
    def servers(self) -> Mapping[str, Server]:
        return {row.name: server_of(row, self.now) for row in self._sources.servers.all(self.tenant)}

    @functools.cached_property
    def plan_texts(self) -> Mapping[str, str]:
        """The plans that somebody wrote, by name."""
        return self._sources.plans.texts(self.tenant)

    @functools.cached_property
    def caps(self) -> Caps:
        """What the tenant's runs may not exceed together."""
        return self._sources.plans.caps(self.tenant)

    @functools.cached_property
    def facts(self) -> SiteFacts:
        site = self._sources.site
        capacity = site.capacity()
        return SiteFacts(
            name=site.name,
            free_bytes=capacity.free_bytes,
            free_memory_mib=capacity.free_memory_mib,
            cpus=capacity.cpus,
            sizes=capacity.sizes,
            repairs=self._sources.repairer is not None,
            witnesses=self._sources.witnesses,
        )

    @functools.cached_property
    def proofs(self) -> Mapping[str, Proof]:
        """The newest verdict on each server that has one."""
        return self._by_name(self._sources.proofs.of_servers(self.tenant))

    @functools.cached_property
    def bootable(self) -> Mapping[str, Proof]:
        """The newest run that each server came up in, of those that ever did."""
        return self._by_name(self._sources.proofs.bootable(self.tenant))

    @functools.cached_property
    def live(self) -> Sequence[Run]:
        """As RunStore.live."""
        return self._sources.runs.live(self.tenant)

    def newest_point(self, name: str) -> Sequence[Point]:
        """The newest point of a server, if there is one."""
        found = self._newest.get(self.servers[name].id)
        return [] if found is None else [found]

    def points(self, name: str) -> Sequence[Point]:
        """All points of a server, newest first; each says whether a run has proven it bootable."""
        if name not in self._points:
            server_id = self.servers[name].id
            proven = {point: proof.held for point, proof in self._sources.proofs.of_points(server_id).items()}
            self._points[name] = [
                replace(point, bootable=proven.get(point.id)) for point in self._sources.points.newest_first(server_id)
            ]
        return self._points[name]

    def last_boots(self, names: Collection[str]) -> Mapping[str, Booted]:
        """How the last boots of these servers went, where a run has a verdict on them."""
        told_by = {self.proofs[name].run for name in names if name in self.proofs}
        return last_boots(self._sources.runs.those(told_by))

    def plan(self, target: str) -> Plan:
        """The plan of that name, else the default plan of that server. Raises NotFound."""
        text = self.plan_texts.get(target)
        if text is not None:
            return parse_plan(text, f"plan {target}")
        if target in self.servers:
            return default_plan(target, windows=self.servers[target].windows)
        known = ", ".join(sorted({*self.plan_texts, *self.servers})[:10]) or "none yet"
        raise NotFound(f"there is no plan or server {target!r}", f"there are: {known}")

    def missing_drivers(self, name: str) -> list[str]:
        """Of a server that runs Windows: drivers that boot repair could not give it, should it have none."""
        repairer = self._sources.repairer
        return repairer.missing_drivers(name) if repairer and self.servers[name].windows else []

    @functools.cached_property
    def missing_packages(self) -> list[str]:
        """What the boot repair of a Windows needs here; nothing where there is no Windows."""
        repairer = self._sources.repairer
        return repairer.missing_packages() if repairer and any(row.windows for row in self.servers.values()) else []

    @functools.cached_property
    def servers_by_target(self) -> Mapping[str, tuple[str, ...]]:
        """The servers of all plans, and those that are in none. A plan that cannot be read any more (it was written for
        another version) has none: it must not take the others along."""
        found: dict[str, tuple[str, ...]] = {}
        for name in self.plan_texts:
            try:
                found[name] = tuple(server.name for server in self.plan(name).servers)
            except UsageError as error:
                log.warning("a plan cannot be read any more: %s", error)
                found[name] = ()
        planned = {name for names in found.values() for name in names}
        for name in self.servers:
            if name not in planned:
                found.setdefault(name, (name,))
        return found

    def _by_name(self, found: Mapping[str, Proof]) -> Mapping[str, Proof]:
        return {name: found[server.id] for name, server in self.servers.items() if server.id in found}

    @functools.cached_property
    def _newest(self) -> Mapping[str, Point]:
        return self._sources.points.newest(self.tenant)
