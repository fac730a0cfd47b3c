"""Hardware acceleration: tried, never believed. A node /dev/kvm that opens may still hang every real guest."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import tempfile
from pathlib import Path

from agent.protocol.errors import SiteError
from recovery.sites.local.durable import storage_errors, write_file
from recovery.sites.local.tools import tool

ENVIRONMENT = "UNDERSTUDY_ACCEL"
KVM = "kvm"
TCG = "tcg"
_CACHE = "accel.json"
_PROBE_SECONDS = 8.0
_EXIT_CODE = (ord("3") << 1) | 1  # what isa-debug-exit makes of the byte that the sector writes last

# A boot sector that does what a kernel does early and what a broken KVM hangs on. It writes '1' to COM1, sleeps with
# HLT through six timer interrupts, writes '2', maps 1 GiB with 2 MiB pages, goes to long mode, fills 64 MiB, runs
# CPUID, writes '3' and leaves through port 0x501. Its source is probe.S, in this folder; a test assembles it.
_SECTOR = (
    bytes.fromhex(
        "fa31c08ed88ec08ed0bc007cb031e888008b1e6c0483c306fbf4a16c0429d878f8fab032e8720066bf001000000f22df6631"
        "c066b900100000fc66f3ab66c70600100320000066c706002003300000bf003066b883000000b90002668905660500002000"
        "83c708e2f20f20e06683c8200f22e066b9800000c00f32660d000100000f300f20c0660d010000800f22c00f0116dc7cea9e"
        "7c0800baf803eec348c7c700000001b900000004b05af3aa807fff5a751231c00fa2baf8030000b033eeba01050000eef4eb"
        "fd0f1f000000000000000000ffff0000009aaf000f00cc7c"
    ).ljust(510, b"\0")
    + b"\x55\xaa"
)


def choose(root: Path, forced: str | None) -> str:
    """`kvm` or `tcg`: as forced (argument or UNDERSTUDY_ACCEL), else KVM if a guest really runs under it.

    What the trial showed is kept in root/accel.json for this kernel release. Raises SiteError, ToolMissing."""
    wish = forced or os.environ.get(ENVIRONMENT)
    if wish:
        if wish not in (KVM, TCG):
            raise SiteError(f"{wish!r} is no accelerator", f"set {ENVIRONMENT} to kvm or tcg, or leave it out")
        return wish
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return TCG
    release = platform.release()
    cache = root / _CACHE
    with storage_errors("keep what the trial of KVM showed"):
        try:
            known = json.loads(cache.read_text())
            if known["kernel"] == release and known["accel"] in (KVM, TCG):
                return str(known["accel"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            pass  # not tried yet, or cut off while it was written: try
        accel = KVM if runs_a_guest(KVM) else TCG
        write_file(cache, json.dumps({"kernel": release, "accel": accel}).encode())
    return accel


def runs_a_guest(accel: str) -> bool:
    """Boot the probe. Raises ToolMissing."""
    with tempfile.TemporaryFile() as sector:
        sector.write(_SECTOR)
        sector.flush()
        command = [tool("qemu-system-x86_64"), "-accel", accel, "-cpu", "max", "-m", "256", "-nodefaults"]
        command += ["-display", "none", "-serial", "stdio", "-device", "isa-debug-exit,iobase=0x501,iosize=1"]
        file = {"driver": "file", "filename": f"/proc/self/fd/{sector.fileno()}"}
        command += ["-blockdev", json.dumps({"driver": "raw", "node-name": "disk", "file": file})]
        command += ["-device", "ide-hd,drive=disk"]
        try:
            tried = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_PROBE_SECONDS,
                check=False,
                pass_fds=[sector.fileno()],
            )
        except subprocess.TimeoutExpired:
            return False
    return tried.returncode == _EXIT_CODE and tried.stdout == b"123"
