"""A bare machine in QEMU with the rescue medium in its drive, and somebody who reads its serial line and types."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from demo.lab import free_port

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class BareMachine:
    """Starts from the medium once, and from its disk whenever it restarts. `close` it.

    `hardware` are QEMU's options for another machine than one with virtio disk and network and the medium as a CD."""

    def __init__(self, folder: Path, medium: Path, disk: Path, hardware: Sequence[str | Path] = ()) -> None:
        self.http_port = free_port()
        self.screen = ""
        self._read_to = 0
        self._port = folder / "serial.sock"
        self._log = folder / "bare-qemu.log"
        if not hardware:
            hardware = [
                "-drive", f"file={disk},format=raw,if=virtio", "-cdrom", medium, "-boot", "once=d",
                "-nic", f"user,model=virtio-net-pci,hostfwd=tcp:127.0.0.1:{self.http_port}-:8000",
            ]  # fmt: skip
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    "qemu-system-x86_64", "-name", "bare-metal", "-uuid", str(uuid.uuid4()), "-machine", "q35",
                    "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "768",
                    "-display", "none", "-monitor", "none",
                    "-serial", f"unix:{self._port},server=on,wait=off",
                    "-device", "virtio-rng-pci", *hardware,
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        self._line = self._connected()
        # always read: a serial line whose other end is full holds the whole machine up
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def expect(self, pattern: str, limit_seconds: float) -> re.Match[str]:
        """The next place where the screen says so, behind the one found last."""
        deadline = time.monotonic() + limit_seconds
        while True:
            found = re.compile(pattern).search(self.screen, self._read_to)
            if found is not None:
                self._read_to = found.end()
                return found
            assert time.monotonic() < deadline, f"no {pattern!r} within {limit_seconds:.0f} s; last:\n{self.last}"
            assert self._process.poll() is None, f"QEMU ended:\n{self._log.read_text()}"
            time.sleep(0.2)

    def type(self, text: str) -> None:
        self._line.sendall(text.encode() + b"\r")

    @property
    def last(self) -> str:
        return self.screen[-3000:]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        self._line.close()

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while found := self._line.recv(65536):
                self.screen += _ESCAPES.sub("", found.decode(errors="replace")).replace("\r", "")

    def _connected(self) -> socket.socket:
        deadline = time.monotonic() + 30
        while True:
            line = socket.socket(socket.AF_UNIX)
            try:
                line.connect(str(self._port))
            except OSError:
                line.close()
                assert time.monotonic() < deadline, f"QEMU did not start:\n{self._log.read_text()}"
                time.sleep(0.1)
            else:
                return line


def by_uefi_from_a_stick(folder: Path, medium: Path, disk: Path) -> list[str | Path]:
    """Hardware of another kind: UEFI, the medium on a USB stick, an NVMe disk, an Intel network card."""
    variables = folder / "variables.fd"
    variables.write_bytes(Path("/usr/share/OVMF/OVMF_VARS.fd").read_bytes())
    return [
        "-drive", "if=pflash,format=raw,unit=0,readonly=on,file=/usr/share/OVMF/OVMF_CODE.fd",
        "-drive", f"if=pflash,format=raw,unit=1,file={variables}",
        "-drive", f"if=none,id=stick,format=raw,readonly=on,file={medium}",
        "-device", "qemu-xhci", "-device", "usb-storage,drive=stick,bootindex=1",
        "-drive", f"if=none,id=disk,format=raw,file={disk}", "-device", "nvme,drive=disk,serial=NV1,bootindex=2",
        "-nic", "user,model=e1000e",
    ]  # fmt: skip
