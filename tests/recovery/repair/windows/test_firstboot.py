"""The service of the first boot: as it gets into a replica, and run by Wine's service manager, where there is one."""

from __future__ import annotations

import contextlib
import os
import pty
import shutil
import struct
import subprocess
import time
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest

from recovery.repair.draft import Draft
from recovery.repair.record import KeyChange
from recovery.repair.target import Bus, Firmware, Target
from recovery.repair.windows.firstboot import SAYS_UP, SCRIPT, SERVICE
from recovery.repair.windows.repair import draft_repair
from recovery.repair.windows.supplied import Supplied
from tests.patience import PATIENCE_SECONDS
from tests.recovery.repair.windows.making import MemoryFiles, program
from tests.recovery.repair.windows.test_repair import CS, VIRTIO, guest, small_system

FOLDER = "/Windows/Understudy"
KEY = rf"{CS}\Services\{SERVICE}"
_TYPES = {1: "REG_SZ", 2: "REG_EXPAND_SZ", 4: "REG_DWORD", 7: "REG_MULTI_SZ"}


def drafted(files: MemoryFiles, target: Target = VIRTIO, **supplied: bytes) -> tuple[dict[str, bytes], list[KeyChange]]:
    """Files, and the values of our service."""
    draft = Draft(files)
    with_drivers = Supplied({name.replace("_", "."): content for name, content in supplied.items()})
    _, keys = draft_repair(draft, files, target, supplied=with_drivers)
    written = {change.path: change.after or b"" for change in draft.changes()}
    return written, [change for change in keys if change.key == KEY and change.value is not None]


def test_a_service_of_our_own_runs_the_script_once_windows_is_up() -> None:
    written, values = drafted(guest(small_system()))
    said = {change.value: change.after for change in values}
    assert written[f"{FOLDER}/first-boot.cmd"] == SCRIPT
    assert said["Start"] == (4, struct.pack("<I", 2))
    assert said["ErrorControl"] == (4, bytes(4)), "a service manager that complains must not stop the boot"
    kind, command = said["ImagePath"]  # type: ignore[misc]
    assert (kind, command.decode("utf-16-le")[-39:]) == (2, r"%SystemRoot%\Understudy\first-boot.cmd" + "\0")
    assert {change.before for change in values} == {None}


def test_supplied_packages_are_put_beside_the_script_with_all_their_files() -> None:
    written, _ = drafted(guest(small_system()), netkvm_inf=b"inf", netkvm_sys=b"sys", viostor_sys=program())
    assert written[f"{FOLDER}/drivers/netkvm.inf"] == b"inf"
    assert written[f"{FOLDER}/drivers/netkvm.sys"] == b"sys"
    assert written["/Windows/System32/drivers/viostor.sys"] == program()


def test_drivers_that_nobody_would_install_are_not_put_there() -> None:
    written, _ = drafted(guest(small_system()), Target(bus=Bus.NVME, firmware=Firmware.UEFI), viostor_sys=program())
    assert list(written) == [f"{FOLDER}/first-boot.cmd"]


def test_the_script_is_what_cmd_reads() -> None:
    assert SCRIPT.isascii()
    assert SCRIPT.count(b"\n") == SCRIPT.count(b"\r\n") > 10


class Wine:
    """A Wine of the test's own, with a first serial port that we listen at."""

    def __init__(self, folder: Path) -> None:
        self.windows = folder / "prefix/drive_c/windows"
        ours = {"WINEPREFIX": str(folder / "prefix"), "WINEDEBUG": "-all", "HOME": str(folder)}
        self._environment = {**os.environ, **ours}
        self._port, self._line = pty.openpty()
        tty.setraw(self._line)
        os.set_blocking(self._port, False)

    def run(self, *command: str, program: str = "wine") -> str:
        done = subprocess.run(
            [program, *command],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        return done.stdout + done.stderr

    def set(self, key: str, value: str, kind: int, data: bytes) -> None:
        shown = str(int.from_bytes(data, "little")) if kind == 4 else data.decode("utf-16-le").rstrip("\0")
        self.run("reg", "add", rf"HKLM\{key}", "/v", value, "/t", _TYPES[kind], "/d", shown, "/f")

    def left_by(self, service: str) -> list[str]:
        listed = self.run("reg", "query", r"HKLM\SYSTEM\CurrentControlSet\Services")
        files = [str(path) for path in (self.windows / "understudy").glob("*")]
        return files + [line for line in listed.splitlines() if line.endswith(rf"\{service}")]

    def restart(self) -> None:
        self.stop()
        self.run("-i", program="wineboot")

    def stop(self) -> None:
        self.run("-k", "-w", program=_wineserver() or "")

    def make(self) -> None:
        self.run("-i", program="wineboot")
        self.set(r"Software\Wine\Ports", "COM1", 1, os.ttyname(self._line).encode("utf-16-le"))

    def heard(self, last: str) -> str:
        """What came through the serial port, once it ends with this."""
        said = b""
        limit = time.monotonic() + PATIENCE_SECONDS
        while last.encode() not in said and time.monotonic() < limit:
            with contextlib.suppress(BlockingIOError):
                said += os.read(self._port, 4096)
            time.sleep(0.05)
        return said.decode(errors="replace")

    def close(self) -> None:
        self.stop()
        os.close(self._port)
        os.close(self._line)


def _wineserver() -> str | None:
    return shutil.which("wineserver") or shutil.which("wineserver64", path="/usr/lib/wine")


@pytest.fixture
def wine(tmp_path: Path) -> Iterator[Wine]:
    if shutil.which("wine") is None or _wineserver() is None:
        pytest.skip("Wine is not installed: apt-get install wine wine64")
    made = Wine(tmp_path)
    made.make()
    try:
        yield made
    finally:
        made.close()


@pytest.mark.long
def test_a_service_manager_runs_it_at_the_start_and_it_removes_itself(wine: Wine) -> None:
    written, values = drafted(guest(small_system()), netkvm_inf=b"[Version]", viostor_sys=program())
    for path, content in written.items():
        place = wine.windows / path.removeprefix("/Windows/").lower()
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    for change in values:
        assert change.value is not None
        assert isinstance(change.after, tuple)
        if change.value != "DependOnService":  # Wine has no such service to wait for
            wine.set(rf"SYSTEM\CurrentControlSet\Services\{SERVICE}", change.value, *change.after)
    wine.restart()
    said = wine.heard("first boot done").splitlines()
    assert said[0] == SAYS_UP
    assert said[1].startswith("understudy: netkvm.inf: pnputil ended with "), "Wine has no pnputil, and that is said"
    assert said[2:] == ["understudy: first boot done"]
    limit = time.monotonic() + PATIENCE_SECONDS
    while (left := wine.left_by(SERVICE)) and time.monotonic() < limit:
        time.sleep(0.2)
    assert left == []
