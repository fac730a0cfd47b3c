"""The inventory as text for people."""

from __future__ import annotations

from typing import Any

_MARKS = {"ok": "ok  ", "warn": "WARN", "stop": "STOP"}


def inventory_text(found: dict[str, Any]) -> str:
    """A few lines: the machine, its disks, and what would stop it from booting elsewhere."""
    lines = [
        f"{found.get('hostname')}: {found.get('os')}, kernel {found.get('kernel')}, {found.get('boot_mode')}, "
        f"{found.get('cpus')} CPUs, {found.get('memory_mib')} MiB"
    ]
    lines.extend(
        f"  {disk.get('name')}  {disk.get('size_bytes', 0) / (1 << 30):.2f} GiB  {disk.get('model') or ''}"
        for disk in found.get("disks", [])
    )
    findings = found.get("boot_findings", [])
    lines.append("would it boot elsewhere?" if findings else "nothing found that would stop it from booting")
    for finding in findings:
        way_out = finding.get("way_out")
        lines.append(
            f"  {_MARKS.get(finding.get('level'), '?')}  {finding.get('what')}" + (f" ({way_out})" if way_out else "")
        )
    return "\n".join(lines)
