"""What a server has at home, from the inventory that its agent sent. What cannot be understood is not known."""

from __future__ import annotations

import hashlib
import ipaddress
import json
from collections.abc import Iterator
from typing import Any

from recovery.control import BootFinding

_MATTERS_TO_A_BOOT = ("boot_files", "boot_findings", "boot_mode", "boots_on", "os")
_NOT_CARDS = ("docker", "veth", "virbr", "br-", "tun", "tap", "wg", "cni", "flannel")


def cpus(inventory: dict[str, Any]) -> int | None:
    return _count(inventory.get("cpus"))


def memory_mib(inventory: dict[str, Any]) -> int | None:
    return _count(inventory.get("memory_mib"))


def address(inventory: dict[str, Any]) -> str | None:
    """The first IPv4 address of a network card, with its prefix length."""
    for text in _addresses(inventory):
        try:
            interface = ipaddress.IPv4Interface(text)
        except ValueError:
            continue
        if "/" in text and not interface.is_loopback and not interface.is_link_local:
            return str(interface)
    return None


def is_windows(inventory: dict[str, Any]) -> bool:
    return "windows" in str(inventory.get("os")).lower()


def boot_findings(inventory: dict[str, Any]) -> tuple[BootFinding, ...]:
    """Those that are not all right."""
    return tuple(
        BootFinding(level=level, what=str(entry.get("what", "")), way_out=str(entry.get("way_out", "")))
        for entry in _entries(inventory, "boot_findings")
        if (level := str(entry.get("level"))) in ("stop", "warn")
    )


def boots_on(inventory: dict[str, Any]) -> tuple[str, ...]:
    """Disk controllers that the machine would boot from as it is, for certain."""
    found = inventory.get("boots_on")
    return tuple(name for name in found if isinstance(name, str)) if isinstance(found, list) else ()


def boot_digest(inventory: dict[str, Any]) -> str | None:
    """Changes with all that matters to a boot elsewhere; None from an agent that does not tell of it."""
    if not isinstance(inventory.get("boot_files"), str):
        return None
    told = {name: inventory.get(name) for name in _MATTERS_TO_A_BOOT}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:32]


def _addresses(inventory: dict[str, Any]) -> Iterator[str]:
    for card in _entries(inventory, "network"):
        found = card.get("addresses")
        if card.get("mac") and isinstance(found, list) and not str(card.get("name")).startswith(_NOT_CARDS):
            yield from (text for text in found if isinstance(text, str))


def _entries(inventory: dict[str, Any], name: str) -> list[dict[str, Any]]:
    found = inventory.get(name)
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


def _count(value: object) -> int | None:
    return value if type(value) is int and value > 0 else None
