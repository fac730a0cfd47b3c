"""The inventory as text for people."""

from __future__ import annotations

from typing import Any

_MARKS = {"ok": "ok  ", "warn": "WARN", "stop": "STOP"}


def inventory_text(found: dict[str, Any]) -> str:
    """A few lines: the machine, its disks, and what would stop it from booting elsewhere."""
    lines = [_machine(found)]
    for disk in found.get("disks", []):
        size = f"{disk.get('size_bytes', 0) / (1 << 30):.2f} GiB"
        lines.append(f"  {disk.get('name')}  {size}  {disk.get('model') or ''}")
        if disk.get("marks"):
            lines.append(f"    {', '.join(disk['marks'])}")
    for volume in found.get("protected", []):
        where = "" if volume["device"] == volume["path"] else f", here {volume['device'] or 'in doubt'}"
        lines.append(f"  protected: {volume['path']}{where}" + (f": {volume['problem']}" if volume["problem"] else ""))
    findings = found.get("boot_findings", [])
    lines.append("would it boot elsewhere?" if findings else "nothing found that would stop it from booting")
    for finding in findings:
        way_out = finding.get("way_out")
        lines.append(
            f"  {_MARKS.get(finding.get('level'), '?')}  {finding.get('what')}" + (f" ({way_out})" if way_out else "")
        )
    return "\n".join(lines)


def _machine(found: dict[str, Any]) -> str:
    if found.get("hostname") is None:
        return f"{found.get('os')}, {found.get('boot_mode')}; its name, processors, memory and addresses are not known"
    return (
        f"{found['hostname']}: {found.get('os')}, kernel {found.get('kernel')}, {found.get('boot_mode')}, "
        f"{found.get('cpus')} CPUs, {found.get('memory_mib')} MiB"
    )
