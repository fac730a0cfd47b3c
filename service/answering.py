"""Everything that answers over HTTP, put together: agents, the receiver, operators, and the chores beside them."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import json
import logging
import os
import signal
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

from aiohttp import web

from agent.protocol.errors import SiteError, StorageError
from recovery.drills.reaper import Reaper
from recovery.repair import worker
from recovery.sites.local import LocalSite
from service.api.agents import AgentHttp
from service.api.drills import DrillHttp
from service.api.homeward import homeward_route
from service.api.middleware import agents_by_certificate, errors_as_json, operators_by_token
from service.api.operators import OperatorHttp, tenant_of
from service.api.pairing import PairingHttp
from service.api.plans import PlanHttp
from service.api.runs import RunHttp
from service.core import Core
from service.desk import RunDesk
from service.drills import DrillRounds, keep_drilling
from service.estate import Sources
from service.files import write_private
from service.identity.as_server import server_of
from service.identity.enrolment import Enrolment
from service.identity.gatekeeper import Gatekeeper
from service.identity.pairing import Pairings
from service.identity.sightings import Sightings
from service.listening import in_one_line, in_url, listen
from service.pki import Pki
from service.plan_checks import keep_checking
from service.planning import PlanBook
from service.receiver.dedupe.index import ContentIndex
from service.receiver.http import ReceiverHttp
from service.receiver.operators import OperatorHttp as PointHttp
from service.receiver.pull import PointReader
from service.receiver.receiver import Receiver
from service.receiver.retention import Retention
from service.receiver.seed import SeedHttp
from service.receiver.upkeep import keep_up
from service.receiver.verify.http import VerifyHttp, alone_with
from service.receiver.verify.records import Records
from service.receiver.verify.verifier import Verifier
from service.serve import ServeOptions
from service.store.drills import DrillStore
from service.store.enrolment import EnrolmentStore

RECEIVER_THREADS = 8
SLOW_THREADS = 4
SHUTDOWN_SECONDS = 5.0
CERTIFICATE_CHECK_SECONDS = 86_400.0
_EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104  # recognized, not listened on by default

log = logging.getLogger(__name__)


async def answer(core: Core, options: ServeOptions, resources: contextlib.AsyncExitStack) -> None:
    """Until SIGTERM or SIGINT. Raises Conflict, StorageError, SiteError, UsageError."""
    data, pki, site, bell = options.data, core.pki, core.site, core.bell
    servers, points, runs, plans, audit = core.servers, core.points, core.runs, core.plans, core.audit
    executor = core.executor
    archive = core.archive
    index = ContentIndex.open(data / "dedupe")
    if index is not None:
        resources.callback(index.close)
    receiver = Receiver(site, archive, points, data / "receiver", index=index)
    resources.callback(receiver.close)
    core.receiver.has_come(receiver)
    resources.callback(executor.stop)  # before what its runs use is closed
    reader = PointReader(archive)
    resources.callback(reader.close)
    threads = resources.enter_context(ThreadPoolExecutor(RECEIVER_THREADS, "receiver"))
    # Reading a point back takes hours, merging one minutes: neither may keep a push waiting for a thread.
    slow_threads = resources.enter_context(ThreadPoolExecutor(SLOW_THREADS, "slow"))

    sightings = Sightings(servers)
    resources.callback(sightings.flush)
    retention = Retention(receiver, points, runs.pins, options.keep)
    enrolment = Enrolment(EnrolmentStore(core.database), pki)
    gatekeeper = Gatekeeper(enrolment, servers, points)
    await asyncio.to_thread(lambda: core.agree(receiver.recover()))
    core.receiver.points_known.set()
    book = PlanBook(
        Sources(
            servers=servers,
            points=points,
            plans=plans,
            runs=runs,
            proofs=core.proofs,
            site=site,
            repairer=core.repairer,
            witnesses=True,
        ),
        core.scripts,
    )
    desk = RunDesk(servers, book, runs, site, executor)
    rounds = DrillRounds(DrillStore(core.database), book, runs, desk, audit)
    reaper = Reaper(runs, site, executor.end, lambda tenant, words: audit.add(tenant, "service", "run.drill", words))

    app = web.Application(
        middlewares=[
            errors_as_json,
            agents_by_certificate(gatekeeper),
            operators_by_token(hashlib.sha256(core.admin.secret.encode()).digest()),
        ]
    )
    app.add_routes([web.get("/ca.pem", _ca_handler(pki.ca_pem))])
    app.add_routes(
        AgentHttp(
            enrolment, gatekeeper, servers, core.commands, audit, bell, sightings, options.interval_seconds
        ).routes()
    )
    app.add_routes(PairingHttp(Pairings(), enrolment, servers, audit, bell).routes())
    app.add_routes([homeward_route(servers, runs)])
    app.add_routes(ReceiverHttp(receiver, reader, gatekeeper, threads).routes())
    app.add_routes(PointHttp(receiver, reader, points, slow_threads, tenant_of).routes())
    records = Records(
        site, archive, points, pki.signing_key.public_key(), lambda tenant: {row.id for row in servers.all(tenant)}
    )
    verifier = Verifier(
        site,
        archive,
        records,
        data / "receiver" / "scratch",
        alone_with(receiver, reader),
    )
    app.add_routes(
        VerifyHttp(
            verifier,
            core.database,
            slow_threads,
            tenant_of,
            lambda tenant, words: audit.add(tenant, "operator", "verify.heal", words),
        ).routes()
    )
    app.add_routes(
        SeedHttp(
            receiver,
            lambda server_id: server_of(servers.get(server_id), time.time()),
            lambda tenant, words: audit.add(tenant, "operator", "seed import", words),
            slow_threads,
            tenant_of,
            pki.ca_fingerprint,
        ).routes()
    )
    listening = listen(options.host, options.port)
    port = listening.getsockname()[1]
    url = f"https://{in_url(options.host)}:{port}"
    everywhere = options.host in _EVERYWHERE
    for_agents = f"https://{socket.gethostname()}:{port}" if everywhere else url
    app.add_routes(
        OperatorHttp(
            enrolment,
            servers,
            points,
            core.commands,
            plans,
            book,
            core.proofs,
            audit,
            bell,
            for_agents,
            lambda server_id: receiver.sessions.current(server_id) is not None,
            retention.why_held,
        ).routes()
    )
    app.add_routes(PlanHttp(book, plans, audit).routes())
    app.add_routes(RunHttp(book, desk, bell).routes())
    app.add_routes(DrillHttp(rounds, desk, core.keeper).routes())

    logging.getLogger("aiohttp.server").addFilter(in_one_line)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_SECONDS)
    await runner.setup()
    resources.push_async_callback(runner.cleanup)
    resources.callback(bell.close)
    stop = _stop_event()
    tls = pki.server_context()
    await web.SockSite(runner, listening, ssl_context=tls).start()
    from_here = f"https://localhost:{port}" if everywhere else url
    write_private(data / "service.json", json.dumps({"url": from_here, "pid": os.getpid()}).encode())
    chores = [
        asyncio.create_task(keep_up(receiver, reader, retention, slow_threads)),
        asyncio.create_task(_keep_certificate(pki, options.host, tls)),
        asyncio.create_task(_prepare(site)),
        asyncio.create_task(sightings.keep_up()),
        asyncio.create_task(keep_checking(book, plans, audit, slow_threads)),
        asyncio.create_task(keep_drilling(reaper, rounds, core.leftovers)),
    ]
    gc.collect()
    gc.freeze()  # what is here now stays to the end, and need not be looked through again and again
    gc.enable()
    print(f"ready {url}", flush=True)
    log.info("ready at %s, data in %s", url, data)
    if reason := worker.unavailable():
        log.info("boot repair is off: %s", reason)
    await stop.wait()
    for chore in chores:
        chore.cancel()
    (data / "service.json").unlink(missing_ok=True)
    log.info("stopping")


async def _prepare(site: LocalSite) -> None:
    """What the first launch would have to find out is found out before somebody is in a hurry."""
    try:
        await asyncio.to_thread(site.prepare)
    except SiteError as error:
        log.warning("nothing could be booted here now: %s", error)


async def _keep_certificate(pki: Pki, listen_host: str, tls: ssl.SSLContext) -> None:
    """A service that runs for a year must not outlive its certificate. Runs until it is cancelled."""
    while True:
        await asyncio.sleep(CERTIFICATE_CHECK_SECONDS)
        try:
            if pki.renew_if_due(listen_host):
                pki.load_service_certificate(tls)
                log.info("the service's certificate was renewed")
        except StorageError as error:
            log.warning("the service's certificate cannot be renewed: %s", error)


def _stop_event() -> asyncio.Event:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


def _ca_handler(ca_pem: bytes) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(body=ca_pem, content_type="application/x-pem-file")

    return handler
