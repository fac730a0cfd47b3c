"""The hellos of many agents over TLS with their certificates, each on its connection, as the daemon sends them; what is
counted is the service's processor time."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import time
import urllib.parse
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.measure import BenchError, anonymous_mib, processor_seconds
from bench.service import Service

MOST_CORES = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeats:
    """`cores` is the service's processor time by the time it took, once all agents were there."""

    agents: int
    hellos_a_second: float
    cores: float
    anonymous_mib: int
    failed: int


def measure(work: Path, agents: int, seconds: float) -> Heartbeats:
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
            f"POST /agent/v1/hello HTTP/1.1\r\nHost: x\r\nUnderstudy-Protocol: 2\r\nContent-Length: {len(body)}\r\n\r\n"
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


def rows(found: Heartbeats) -> list[tuple[str, str, str, bool | None]]:
    """What, figure, limit, whether it holds (None: there is no limit)."""
    return [
        (
            f"heartbeats of {found.agents} agents",
            f"{found.cores:.2f} of a core at {found.hellos_a_second:.0f} hellos a second",
            f"< {MOST_CORES}",
            found.cores < MOST_CORES,
        ),
        ("hellos that failed", str(found.failed), "0", not found.failed),
        ("service's anonymous memory meanwhile", f"{found.anonymous_mib} MiB", "", None),
    ]
