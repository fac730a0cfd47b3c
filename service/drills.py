"""Drills that nobody has to think of: each target in its turn, ended when its time is over, nothing left behind."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from agent.protocol.errors import UnderstudyError
from recovery.drills.reaper import DEFAULT_TTL_SECONDS, Reaper
from recovery.drills.rotation import DrillSchedule, Target, next_targets
from recovery.preflight import Proof
from recovery.runs import Run, RunKind
from service.desk import RunDesk
from service.estate import Estate
from service.evidence.facts import iso
from service.leftovers import Leftovers
from service.planning import PlanBook
from service.store.audit import AuditStore
from service.store.drills import DrillStore
from service.store.runs import RunRows

SWEEP_SECONDS = 5.0
TURN_SECONDS = 30.0
REMOVE_SECONDS = 86_400.0
REFUSED_SECONDS = 3600.0
"""Until a target whose drill could not begin is tried again."""

log = logging.getLogger(__name__)


class DrillRounds:
    """Begins the drills that are due. All calls block."""

    def __init__(
        self,
        drills: DrillStore,
        book: PlanBook,
        runs: RunRows,
        desk: RunDesk,
        audit: AuditStore,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._drills = drills
        self._book = book
        self._runs = runs
        self._desk = desk
        self._audit = audit
        self._now = now
        self._refused: dict[tuple[str, str], float] = {}
        """When a target's drill could not begin. Forgotten by a restart, which tries once more."""

    def turn(self) -> list[str]:
        """Begin what is due; the ids of the drills."""
        live = self._runs.live_drills()
        begun: list[Run | None] = []
        for tenant, schedule in self._drills.schedules().items():
            running = [run.plan for run in live if run.tenant == tenant and run.scheduled]
            if len(running) >= schedule.at_once or not schedule.is_open(self._now()):
                continue  # nothing is read for it
            everybody = self._targets(self._book.estate(tenant))
            targets = [target for target in everybody if not self._was_refused(tenant, target.name)]
            begun += [self._begin(tenant, name) for name in next_targets(schedule, targets, running, self._now())]
        return [run.id for run in begun if run is not None]

    def standing(self, tenant: str) -> dict[str, Any]:
        """The schedule, and how each target stands: longest unproven first."""
        schedule, estate = self._drills.schedules().get(tenant), self._book.estate(tenant)
        documents = []
        for target in sorted(self._targets(estate), key=lambda target: (target.tried_at, target.name)):
            due_at = target.tried_at + schedule.every_seconds if schedule else None
            servers = [
                {
                    "server": name,
                    "proven_at": _at(estate.bootable.get(name)),
                    "last": _verdict(estate.proofs.get(name)),
                }
                for name in estate.servers_by_target[target.name]
            ]
            documents.append(
                {
                    "target": target.name,
                    "tried_at": iso(target.tried_at or None),
                    "due_at": None if due_at is None else iso(max(due_at, self._now())),
                    "servers": servers,
                }
            )
        return {"schedule": schedule_to_json(schedule), "targets": documents}

    def set_schedule(self, tenant: str, schedule: DrillSchedule | None) -> None:
        self._drills.put_schedule(tenant, schedule)
        self._refused.clear()
        self._audit.add(tenant, "operator", "drills.schedule", str(schedule_to_json(schedule) or "off"))

    def _targets(self, estate: Estate) -> list[Target]:
        """A plan with a server that nobody has proven for long is as old as that one."""
        tried = self._drills.tried(estate.tenant)
        targets = []
        for name, servers in estate.servers_by_target.items():
            proven = [estate.proofs.get(server) for server in servers]
            oldest = min((0.0 if proof is None else proof.at for proof in proven), default=0.0)
            targets.append(Target(name=name, tried_at=max(oldest, tried.get(name, 0.0))))
        return targets

    def _was_refused(self, tenant: str, name: str) -> bool:
        at = self._refused.get((tenant, name))
        return at is not None and self._now() - at < REFUSED_SECONDS

    def _begin(self, tenant: str, name: str) -> Run | None:
        try:
            planned = self._book.plan(tenant, RunKind.DRILL, name, None)
            planned.run.scheduled = True
            planned.run.expires_at = planned.run.created_at + DEFAULT_TTL_SECONDS
            run = self._desk.start(planned)
        except UnderstudyError as error:
            self._refused[tenant, name] = self._now()
            log.warning("the scheduled drill of %s cannot begin: %s", name, error)
            self._audit.add(tenant, "service", "drill.refused", f"{name}: {error}")
            return None
        log.info("scheduled drill %s of %s begins", run.id, name)
        return run


def schedule_to_json(schedule: DrillSchedule | None) -> dict[str, Any] | None:
    if schedule is None:
        return None
    return asdict(schedule) | {"window": None if schedule.window is None else str(schedule.window)}


async def keep_drilling(reaper: Reaper, rounds: DrillRounds, leftovers: Leftovers) -> None:
    """Runs until it is cancelled."""
    await asyncio.gather(
        _again_and_again("removing old evidence", leftovers.remove_old, REMOVE_SECONDS),
        _again_and_again("sweeping up after drills", reaper.sweep, SWEEP_SECONDS),
        _again_and_again("beginning drills", rounds.turn, TURN_SECONDS),
    )


async def _again_and_again(what: str, work: Callable[[], object], seconds: float) -> None:
    """A failure is logged, and tried again the next time."""
    while True:
        try:
            await asyncio.to_thread(work)
        except UnderstudyError as error:
            log.warning("%s: %s", what, error)
        except Exception:
            log.exception("%s failed", what)
        await asyncio.sleep(seconds)


def _at(proof: Proof | None) -> str | None:
    return None if proof is None else iso(proof.at)


def _verdict(proof: Proof | None) -> dict[str, Any] | None:
    return None if proof is None else {"run": proof.run, "at": iso(proof.at), "held": proof.held}
