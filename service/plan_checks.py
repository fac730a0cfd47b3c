"""Would the plans work now? Asked again and again while all is well, so that nobody learns it in a disaster."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Executor

from agent.protocol.errors import UnderstudyError
from service.planning import PlanBook
from service.store.audit import AuditStore
from service.store.plans import PlanStore

INTERVAL_SECONDS = 300.0
FIRST_SECONDS = 30.0
"""Not at once: after a start agents have yet to come back."""

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
        checked = []
        for check in book.checks(tenant):
            checked.append(check.plan)
            before = plans.put_check(tenant, check)
            if before is None or before.level != check.level:
                worst = next((finding["text"] for finding in check.findings if finding["level"] == check.level), "")
                log.log(logging.WARNING if check.level == "red" else logging.INFO, "plan %s is %s: %s",
                        check.plan, check.level, worst or "it would work now")  # fmt: skip
                audit.add(tenant, "service", "plan.check", f"{check.plan} is {check.level}: {worst}".rstrip(": "))
        plans.keep_checks(tenant, checked)
