"""Would the plans work now? Asked again and again while all is well, so that nobody learns it in a disaster."""

from __future__ import annotations

import asyncio
import itertools
import logging
from concurrent.futures import Executor

from agent.protocol.errors import UnderstudyError
from service.planning import PlanBook
from service.store.audit import AuditStore
from service.store.plans import PlanStore
from service.store.rows import PlanCheck

INTERVAL_SECONDS = 300.0
FIRST_SECONDS = 30.0
"""Not at once: after a start agents have yet to come back."""

AT_ONCE = 1000
"""So many checks share a transaction."""

log = logging.getLogger(__name__)


async def keep_checking(book: PlanBook, plans: PlanStore, audit: AuditStore, threads: Executor) -> None:
    """Runs until it is cancelled; a failure is logged, and tried again at the next turn."""
    loop = asyncio.get_running_loop()
    await asyncio.sleep(FIRST_SECONDS)
    while True:
        try:
            await loop.run_in_executor(threads, check_all, book, plans, audit)
        except UnderstudyError as error:
            log.warning("plans are not checked: %s", error)
        except Exception:
            log.exception("checking plans failed")
        await asyncio.sleep(INTERVAL_SECONDS)


def check_all(book: PlanBook, plans: PlanStore, audit: AuditStore) -> None:
    """Check every plan of every tenant, keep the answers, and say which have changed."""
    for tenant in plans.tenants():
        checked: list[str] = []
        round_of_checks = iter(book.checks(tenant))
        while checks := list(itertools.islice(round_of_checks, AT_ONCE)):
            before = plans.put_checks(tenant, checks)
            changed = [one for one in checks if one.plan not in before or before[one.plan].level != one.level]
            audit.add_all(tenant, "service", "plan.check", [_told(check) for check in changed])
            checked += [check.plan for check in checks]
        plans.keep_checks(tenant, checked)


def _told(check: PlanCheck) -> str:
    """Says it in the log, and returns what the audit keeps."""
    worst = next((finding["text"] for finding in check.findings if finding["level"] == check.level), "")
    level = logging.WARNING if check.level == "red" else logging.INFO
    log.log(level, "plan %s is %s: %s", check.plan, check.level, worst or "it would work now")
    return f"{check.plan} is {check.level}: {worst}".rstrip(": ")
