r"""What our agent's service is to do at a replica's first start on other hardware: a job file that boot repair leaves.

Needs no network to be read, and says nothing secret. Steps come from a closed list, so that the file can ask for
nothing else; the agent turns them into commands:

    {"version": 1, "run": ID, "machine": UUID, "steps": [STEP, ...]}

    {"do": "drivers"}       pnputil /add-driver C:\ProgramData\Understudy\drivers\*.inf /subdirs /install
    {"do": "disks-online"}  every disk online and writable
    {"do": "address", "card": N, "address": "10.0.0.5/24", "gateway": "10.0.0.1" or null, "dns": [...]}
                            card N as Windows counts those that are connected, from 0; a card without a step keeps DHCP,
                            which Windows gives every card that it meets for the first time

The agent does the job once, only on the machine whose DMI product UUID is `machine` (a replica that went home again is
another one), removes the file, and says in its log what each step came to. It must take the job from a folder that only
SYSTEM and administrators can write to.
"""

from __future__ import annotations

import ipaddress
import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from agent.protocol.errors import UsageError
from recovery.repair.draft import Draft
from recovery.repair.files import GuestFiles
from recovery.repair.record import Finding
from recovery.repair.windows.guest import find

VERSION = 1
_FOLDER = "/ProgramData/Understudy"
_JOB = "first-boot.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A static address that a plan maps to a network card. `address` with its prefix: "10.0.0.5/24"."""

    card: int
    address: str
    gateway: str | None = None
    dns: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """`drivers`: install what lies in the agent's drivers folder. Raises UsageError for what is no UUID or address."""

    run_id: str
    machine_id: str
    addresses: Sequence[Address] = ()
    drivers: bool = True

    def document(self) -> dict[str, Any]:
        try:
            machine = str(uuid.UUID(self.machine_id))
            steps = [_address_step(address) for address in self.addresses]
        except ValueError as error:
            raise UsageError(f"the first boot's job cannot be written: {error}", "correct the plan") from error
        first: list[dict[str, Any]] = [{"do": "drivers"}] if self.drivers else []
        return {
            "version": VERSION,
            "run": self.run_id,
            "machine": machine,
            "steps": [*first, {"do": "disks-online"}, *steps],
        }


def repair(draft: Draft, files: GuestFiles, job: Job | None) -> list[Finding]:
    """Draft the job file where the agent is installed. Raises UsageError."""
    if job is None:
        return []
    folder = find(files, _FOLDER)
    if folder is None:
        what = "our agent is not installed: nobody sets addresses or installs drivers at the first boot"
        return (
            [] if not job.addresses else [Finding("warn", what, "install the agent on the server, then take a point")]
        )
    content = json.dumps(job.document(), indent=1).encode()
    draft.write(f"{folder}/{_JOB}", content, "what our agent does at the first boot on other hardware", mode=0o600)
    return []


def _address_step(address: Address) -> dict[str, Any]:
    """Raises ValueError."""
    interface = ipaddress.ip_interface(address.address)
    if "/" not in address.address or address.card < 0:
        raise ValueError(f"{address.address} of card {address.card} is no address with a prefix")
    gateway = str(ipaddress.ip_address(address.gateway)) if address.gateway else None
    dns = [str(ipaddress.ip_address(server)) for server in address.dns]
    return {"do": "address", "card": address.card, "address": str(interface), "gateway": gateway, "dns": dns}
