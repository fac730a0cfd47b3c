"""What runs leave in the data folder, and when it goes: evidence of drills, records of boot repair, scratch."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from agent.protocol.errors import NotFound
from recovery.runs import RunState
from recovery.sites.local.durable import storage_errors
from service.store.proofs import ProofStore
from service.store.runs import RunRows

KEEP_EVIDENCE_DAYS = 400
"""An auditor's year, and a month to ask in."""
_DAY_SECONDS = 86_400.0

log = logging.getLogger(__name__)


class Leftovers:
    """All calls block. `drills` and `repairs` have a folder for each run that left something there."""

    def __init__(
        self,
        drills: Path,
        repairs: Path,
        runs: RunRows,
        proofs: ProofStore,
        keep_days: int = KEEP_EVIDENCE_DAYS,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._drills = drills
        self._repairs = repairs
        self._runs = runs
        self._proofs = proofs
        self._keep_days = keep_days
        self._now = now

    def remove_old(self) -> list[str]:
        """Remove what runs left that ended `keep_days` ago, but for the newest drill that proved a server bootable.

        Returns the runs' ids. What belongs to no run that the database knows stays. Raises StorageError."""
        over = self._runs.ended_before(self._now() - self._keep_days * _DAY_SECONDS) - self._proofs.proving_drills()
        folders = [path for place in (self._drills, self._repairs) for path in place.glob("*") if path.name in over]
        for folder in folders:
            with storage_errors(f"remove {folder}"):
                # first what says that the rest is there
                (folder / f"{folder.name}.json").unlink(missing_ok=True)
                shutil.rmtree(folder)
            log.info("%s is removed: its run ended more than %d days ago", folder, self._keep_days)
        return sorted({folder.name for folder in folders})

    def clear_scratch(self) -> None:
        """At the service's start: scratch layers of boot repairs that were cut off, where their run does not go on."""
        for scratch in self._repairs.glob("*/*/scratch"):
            try:
                is_over = self._runs.get(scratch.parts[-3]).state is RunState.ENDED
            except NotFound:
                is_over = True
            if is_over:
                with storage_errors(f"remove {scratch}"):
                    shutil.rmtree(scratch)
