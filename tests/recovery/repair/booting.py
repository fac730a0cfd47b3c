"""Boots a disk on given hardware until it answers over HTTP, or has said why it will not."""

from __future__ import annotations

import socket
import subprocess
import time
import urllib.request
from pathlib import Path

from recovery.repair.target import Bus, Firmware

LIMIT_SECONDS = 280.0
_GIVEN_UP = ("Gave up waiting for root", "Kernel panic", "ALERT!", "No bootable device", "BdsDxe: No bootable option")
_FIRMWARE = Path("/usr/share/OVMF")
_DEVICES = {
    Bus.VIRTIO: ["-device", "virtio-blk-pci,drive=disk,bootindex=1"],
    Bus.NVME: ["-device", "nvme,drive=disk,serial=vol0123,bootindex=1"],
    Bus.AHCI: ["-device", "ide-hd,drive=disk,bus=ide.0,bootindex=1"],
    Bus.VIRTIO_SCSI: ["-device", "virtio-scsi-pci", "-device", "scsi-hd,drive=disk,bootindex=1"],
}


def firmware_missing() -> str | None:
    return None if (_FIRMWARE / "OVMF_CODE_4M.fd").exists() else "needs UEFI firmware: apt-get install ovmf"


def boot(disk: Path, bus: Bus, firmware: Firmware, folder: Path, port: int) -> tuple[str, str]:
    """(what its web server said, its console); the former is empty if it will not come up. `disk` stays as it is."""
    console = folder / "console.log"
    console.unlink(missing_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        host_port = probe.getsockname()[1]
    command = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]
    command += ["-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "768"]
    command += ["-serial", f"file:{console}", "-vga", "std", "-device", "virtio-rng-pci", "-snapshot"]
    command += ["-drive", f"if=none,id=disk,file={disk},format=qcow2", *_DEVICES[bus]]
    card = "e1000e" if bus is Bus.AHCI else "virtio-net-pci"
    command += ["-netdev", f"user,id=net,hostfwd=tcp:127.0.0.1:{host_port}-:{port}", "-device", f"{card},netdev=net"]
    if firmware is Firmware.UEFI:
        variables = folder / "variables.fd"
        variables.write_bytes((_FIRMWARE / "OVMF_VARS_4M.fd").read_bytes())
        command += ["-drive", f"if=pflash,format=raw,readonly=on,file={_FIRMWARE / 'OVMF_CODE_4M.fd'}"]
        command += ["-drive", f"if=pflash,format=raw,file={variables}"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as qemu:
        try:
            deadline = time.monotonic() + LIMIT_SECONDS
            while time.monotonic() < deadline and qemu.poll() is None:
                if said := _answer(host_port):
                    return said, _text(console)
                if any(words in _text(console) for words in _GIVEN_UP):
                    break
                time.sleep(0.5)
            return "", _text(console)
        finally:
            qemu.kill()


def _answer(port: int) -> str:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
            said: str = answer.read().decode()
            return said
    except OSError:
        return ""


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""
