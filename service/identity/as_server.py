"""A server's row as recovery sees it."""

from __future__ import annotations

from recovery.control import Server
from service.identity import at_home
from service.store.rows import ServerRow


def server_of(row: ServerRow, now: float) -> Server:
    """`now` is in seconds since 1970."""
    return Server(
        id=row.id,
        tenant=row.tenant,
        name=row.name,
        state=row.state.value,
        epoch=row.epoch,
        owner=row.owner_machine,
        last_seen_seconds=None if row.last_seen_at is None else max(0.0, now - row.last_seen_at),
        uefi=is_uefi(row),
        cpus=at_home.cpus(row.inventory),
        memory_mib=at_home.memory_mib(row.inventory),
        address=at_home.address(row.inventory),
        boot_findings=at_home.boot_findings(row.inventory),
        boots_on=at_home.boots_on(row.inventory),
        boot_digest=at_home.boot_digest(row.inventory),
        windows=at_home.is_windows(row.inventory),
    )


def is_uefi(row: ServerRow) -> bool:
    return row.inventory.get("boot_mode") == "uefi"
