"""Many at once: 50 agents that push together into one receiver, and the heartbeats of 5,000.

    python -m bench.crowd [--agents 50] [--mib 64] [--heartbeats 5000] [--only push|heartbeats]

Pushes: real agents, each a process of its own with a disk of its own that cannot be compressed, started before the
clock and let go together; beside one agent alone that pushes as much as a few of them. Meanwhile an operator asks the
API all the time. Agents run at nice 19: elsewhere each has a machine of its own, and here 50 of them must not take the
processors from the one service that is measured. Heartbeats: the hellos of that many agents over TLS with their
certificates, each on its connection, as the daemon sends them; what is counted is the service's processor time.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import shutil
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.measure import BenchError, anonymous_mib, processor_seconds
from bench.service import Service, enroll

MIB = 1 << 20
LEAST_SHARE, LEAST_FAIRNESS, MOST_P99_SECONDS, MOST_CORES = 0.8, 0.5, 0.25, 0.25
ALONE = 8
"""How many of the crowd's disks the single agent pushes, one after the other, for a figure that is not all start-up."""

PUSH = """
import asyncio, json, sys, time
from pathlib import Path
from agent.client import ServiceClient
from agent.protocol.buffers import keep_large_buffers
from agent.push.push import push
from agent.state import State
async def main():
    state = State(Path(sys.argv[1]))
    async with ServiceClient.of(state) as client:
        print("ready", flush=True)
        sys.stdin.readline()
        began = time.monotonic()
        await push(state, client)
        print(json.dumps([began, time.monotonic()]), flush=True)
keep_large_buffers()
asyncio.run(main())
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Crowd:
    """`share` is the crowd's throughput by that of one agent alone. Throughputs are MiB of disk a second."""

    agents: int
    mib_each: int
    alone_mib_a_second: float
    crowd_mib_a_second: float
    share: float
    fairness: float
    p99_seconds: float
    asked: int
    failed: int
    receiver_anonymous_mib: int
    receiver_cpu_seconds: float

    @property
    def holds(self) -> bool:
        good = self.share >= LEAST_SHARE and self.fairness >= LEAST_FAIRNESS and self.p99_seconds < MOST_P99_SECONDS
        return good and not self.failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeats:
    """`cores` is the service's processor time by the time it took, once all agents were there."""

    agents: int
    hellos_a_second: float
    cores: float
    anonymous_mib: int
    failed: int

    @property
    def holds(self) -> bool:
        return self.cores < MOST_CORES and not self.failed


# --- pushes ---


def measure_crowd(work: Path, agents: int, mib: int) -> Crowd:
    """Raises BenchError."""
    with Service(work / "service", "tcg") as service:
        states = [work / f"agent-{number}" for number in range(agents)]
        for number, state in enumerate(states):
            enroll(service, state, f"crowd-{number}", _disk(work / f"disk-{number}.img", mib * MIB, number))
        alone = work / "alone"
        enroll(service, alone, "alone", _disk(work / "alone.img", ALONE * mib * MIB, -1))
        (took,) = _pushed(service, [alone])
        alone_rate = ALONE * mib / (took[1] - took[0])
        before = processor_seconds(service.pid)
        with _Asking(service) as asking, _Peak(service.pid) as peak:
            spans = _pushed(service, states)
        rate = len(spans) * mib / (max(end for _, end in spans) - min(begin for begin, _ in spans))
        speeds = sorted(1 / (end - begin) for begin, end in spans)
        return Crowd(
            agents=agents,
            mib_each=mib,
            alone_mib_a_second=round(alone_rate, 1),
            crowd_mib_a_second=round(rate, 1),
            share=round(rate / alone_rate, 3),
            fairness=round(speeds[0] / statistics.median(speeds), 3),
            p99_seconds=round(asking.p99(), 4),
            asked=len(asking.seconds),
            failed=agents - len(spans),
            receiver_anonymous_mib=peak.mib,
            receiver_cpu_seconds=round(processor_seconds(service.pid) - before, 1),
        )


def _disk(path: Path, size_bytes: int, seed: int) -> Path:
    rng = random.Random(seed)
    with path.open("wb") as file:
        for _ in range(0, size_bytes, 4 * MIB):
            file.write(rng.randbytes(4 * MIB))
    return path


def _pushed(service: Service, states: list[Path]) -> list[tuple[float, float]]:
    """All agents push together; when each began and ended, of those that succeeded."""
    running = [
        subprocess.Popen(
            ["nice", "-n", "19", sys.executable, "-c", PUSH, str(state)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            cwd=Path(__file__).parents[1],
        )
        for state in states
    ]  # fmt: skip
    try:
        for process in running:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                raise BenchError("an agent of the crowd did not start")
        os.sync()
        for process in running:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        ended = [process.communicate(timeout=500)[0] for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    return [tuple(json.loads(out)) for out in ended if out]


class _Asking:
    """An operator who asks for the list of servers, again and again, on one connection."""

    def __init__(self, service: Service) -> None:
        self.seconds: list[float] = []
        self._service = service
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> _Asking:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def p99(self) -> float:
        return statistics.quantiles(self.seconds, n=100)[98] if len(self.seconds) > 1 else float("inf")

    def _ask(self) -> None:
        import http.client

        parts = urllib.parse.urlsplit(self._service.url)
        token = (self._service.data / "admin-token").read_text().strip()
        context = ssl.create_default_context(cafile=str(self._service.data / "pki/ca.pem"))
        context.check_hostname = False
        line = http.client.HTTPSConnection(str(parts.hostname), parts.port, context=context, timeout=60)
        while not self._stop.wait(0.05):
            began = time.monotonic()
            line.request("GET", "/api/v1/servers", headers={"Authorization": f"Bearer {token}"})
            line.getresponse().read()
            self.seconds.append(time.monotonic() - began)
        line.close()


class _Peak:
    """The most anonymous memory that a process had, looked at ten times a second."""

    def __init__(self, pid: int) -> None:
        self.mib = 0
        self._pid = pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> _Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.1):
            self.mib = max(self.mib, int(anonymous_mib(self._pid)))


# --- heartbeats ---


def measure_heartbeats(work: Path, agents: int, seconds: float) -> Heartbeats:
    """Raises BenchError."""
    folder = work / "heartbeats"
    certificates = _enrolled(folder / "data", agents)
    with Service(folder, "tcg") as service:
        return asyncio.run(_hellos(service, certificates, seconds))


def _enrolled(data: Path, agents: int) -> list[tuple[str, str]]:
    """Write so many agents into a service's folder before it starts; (machine, path of certificate and key) of each."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID
    from sqlalchemy import insert

    from agent.inventory import collect
    from agent.protocol.messages import VolumeDeclaration
    from service.pki import Pki
    from service.store.database import Database, sqlite_url
    from service.store.rows import CertificateRow, ServerRow
    from service.store.schema import certificates
    from service.store.servers import insert_server
    from service.store.tenants import ensure_tenant

    data.mkdir(mode=0o700, parents=True)
    pki = Pki.open(data / "pki", "127.0.0.1")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bench")])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    csr_pem = request.public_bytes(serialization.Encoding.PEM).decode()
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    inventory, now, found = collect(), time.time(), []
    database = Database.open(sqlite_url(data / "understudy.sqlite"))
    with database.write() as connection:
        ensure_tenant(connection, "default", now)
        for number in range(agents):
            machine, server_id = f"machine-{number:06d}", f"srv-{number:06d}"
            issued = pki.issue_agent(csr_pem, server_id)
            volumes = (VolumeDeclaration(path="/dev/sda", size_bytes=1 << 36, block_bytes=65536),)
            insert_server(
                connection,
                ServerRow(
                    id=server_id, tenant="default", name=server_id, created_at=now, owner_machine=machine,
                    owner_since=now, inventory=inventory, volumes=volumes, last_seen_at=now,
                ),
            )  # fmt: skip
            row = CertificateRow(
                serial=issued.serial, tenant="default", server_id=server_id, machine_id=machine, enrolled_at=now,
                not_after=issued.not_after.timestamp(),
            )  # fmt: skip
            connection.execute(insert(certificates).values(asdict(row)))
            path = data.parent / f"{number}.pem"
            path.write_text(issued.pem + key_pem)
            found.append((machine, str(path)))
    database.close()
    return found


async def _hellos(service: Service, agents: list[tuple[str, str]], seconds: float) -> Heartbeats:
    from agent.daemon import HELLO_WAIT_SECONDS

    parts = urllib.parse.urlsplit(service.url)
    said = failed = 0
    connecting = asyncio.Semaphore(20)

    async def one(machine: str, certificate: str) -> None:
        nonlocal said, failed
        context = ssl.create_default_context(cafile=str(service.data / "pki/ca.pem"))
        context.check_hostname = False
        context.load_cert_chain(certificate)
        hello = {
            "machine_id": machine, "agent_version": "bench", "wait_seconds": HELLO_WAIT_SECONDS, "inventory": None,
            "volumes": [{"path": "/dev/sda", "size_bytes": 1 << 36, "block_bytes": 65536}],
        }  # fmt: skip
        body = json.dumps(hello).encode()
        head = (
            f"POST /agent/v1/hello HTTP/1.1\r\nHost: x\r\nUnderstudy-Protocol: 1\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        async with connecting:
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port, ssl=context)
        try:
            while True:
                writer.write(head.encode() + body)
                answer = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"(?i)content-length: (\d+)", answer)
                assert length is not None
                await reader.readexactly(int(length[1]))
                said += 1
                failed += b" 200 " not in answer[:20]
        finally:
            writer.close()

    tasks = [asyncio.create_task(one(*agent)) for agent in agents]
    try:
        while said < len(agents):
            await asyncio.sleep(1)
            broken = [task for task in tasks if task.done()]
            if broken:
                raise BenchError(f"{len(broken)} agents could not go on: {broken[0].exception()!r}")
        before, said_before, began = processor_seconds(service.pid), said, time.monotonic()
        await asyncio.sleep(seconds)
        took = time.monotonic() - began
        return Heartbeats(
            agents=len(agents),
            hellos_a_second=round((said - said_before) / took, 1),
            cores=round((processor_seconds(service.pid) - before) / took, 3),
            anonymous_mib=int(anonymous_mib(service.pid)),
            failed=failed + sum(task.done() for task in tasks),
        )
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


# --- words ---


def table(crowd: Crowd | None, heartbeats: Heartbeats | None) -> str:
    lines = ["| what | figure | limit | holds |", "| --- | --- | --- | --- |"]
    if crowd:
        lines += [
            f"| {crowd.agents} agents at once, {crowd.mib_each} MiB each | {crowd.crowd_mib_a_second} MiB/s, one alone "
            f"{crowd.alone_mib_a_second}: {crowd.share:.2f} | >= {LEAST_SHARE} | {_yes(crowd.share >= LEAST_SHARE)} |",
            f"| slowest by the median | {crowd.fairness:.2f} | >= {LEAST_FAIRNESS} "
            f"| {_yes(crowd.fairness >= LEAST_FAIRNESS)} |",
            f"| API meanwhile, p99 of {crowd.asked} | {crowd.p99_seconds * 1000:.0f} ms "
            f"| < {MOST_P99_SECONDS * 1000:.0f} ms | {_yes(crowd.p99_seconds < MOST_P99_SECONDS)} |",
            f"| failed sessions | {crowd.failed} | 0 | {_yes(not crowd.failed)} |",
            f"| receiver's anonymous memory | {crowd.receiver_anonymous_mib} MiB | | |",
        ]
    if heartbeats:
        lines.append(
            f"| heartbeats of {heartbeats.agents} agents | {heartbeats.cores:.2f} of a core at "
            f"{heartbeats.hellos_a_second:.0f} hellos a second, {heartbeats.anonymous_mib} MiB | < {MOST_CORES} "
            f"| {_yes(heartbeats.holds)} |"
        )
    return "\n".join(lines)


def _yes(holds: bool) -> str:
    return "yes" if holds else "**no**"


@contextlib.contextmanager
def _folder(given: str | None) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="understudy-crowd-", dir=given))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.crowd")
    parser.add_argument("--agents", type=int, default=50)
    parser.add_argument("--mib", type=int, default=64)
    parser.add_argument("--heartbeats", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=40)
    parser.add_argument("--only", choices=("push", "heartbeats"))
    parser.add_argument("--work", help="where disks and replicas go; some GiB")
    options = parser.parse_args()
    with _folder(options.work) as work:
        crowd = None if options.only == "heartbeats" else measure_crowd(work, options.agents, options.mib)
        beats = None if options.only == "push" else measure_heartbeats(work, options.heartbeats, options.seconds)
    print(table(crowd, beats))
    return 0


if __name__ == "__main__":
    sys.exit(main())
