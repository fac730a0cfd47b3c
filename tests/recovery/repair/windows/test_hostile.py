"""NTFS volumes that were made to do harm, in a real worker: one clear error, in bounded time, nothing changed."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.protocol.errors import RecoveryError
from recovery.repair.repair import repair, undo
from recovery.repair.target import Bus, Firmware, Target
from recovery.repair.windows.hive import Hive
from tests.recovery.repair.images import overlay
from tests.recovery.repair.windows.disks import NEEDS, SYSTEM, files_of, inside, uefi_disk
from tests.recovery.repair.windows.test_repair import small_system

pytestmark = NEEDS
TARGET = Target(bus=Bus.NVME, firmware=Firmware.UEFI)


def replaced(path: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    """The file is taken away, and something else made there."""

    def spoil(root: Path) -> None:
        (root / path).unlink()
        make(root / path)

    return spoil


def beside(path: str, other: str) -> Callable[[Path], None]:
    """There is another of that name, but for its case."""

    def spoil(root: Path) -> None:
        (root / other).parent.mkdir(parents=True, exist_ok=True)
        (root / other).write_bytes((root / path).read_bytes())

    return spoil


def link_to(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (replaced(SYSTEM, lambda path: path.write_bytes(small_system()[:9000])), "registry hive SYSTEM is damaged"),
        (replaced(SYSTEM, lambda path: path.write_bytes(b"")), "registry hive SYSTEM is damaged"),
        (replaced(SYSTEM, link_to("../../../../../../dev/vda")), "there is no Windows on the replica"),
        (replaced(SYSTEM, link_to("/proc/kmsg")), "there is no Windows on the replica"),
        (replaced(SYSTEM, link_to("SYSTEM")), "no system to repair was found"),
        (replaced(SYSTEM, os.mkfifo), "no plain file"),
        (replaced(SYSTEM, os.mkdir), "no plain file"),
        (beside(SYSTEM, "Windows/System32/config/system"), "2 times"),
        (beside(SYSTEM, "WINDOWS/system32/config/system"), "2 times"),
    ],
    ids=["cut", "empty", "device", "kernel", "loop", "pipe", "folder", "case", "folder-case"],
)
def test_what_stands_in_a_hives_place_is_refused(spoil: Callable[[Path], None], says: str, tmp_path: Path) -> None:
    image = uefi_disk(tmp_path, Hive("SYSTEM", small_system()), spoil=spoil)
    volume = overlay(image, tmp_path / "volume.qcow2")
    before = volume.read_bytes()
    with pytest.raises(RecoveryError, match=says) as caught:
        repair([volume], TARGET, tmp_path / "record")
    assert caught.value.hint
    assert volume.read_bytes() == before


@pytest.mark.parametrize(
    "make", [os.mkfifo, link_to("/dev/console"), link_to("/proc/kmsg")], ids=["pipe", "tty", "log"]
)
def test_what_stands_in_the_hibernation_files_place_is_not_waited_for(
    make: Callable[[Path], object], tmp_path: Path
) -> None:
    """What ntfs-3g cannot read there is for it a system that sleeps."""
    image = uefi_disk(tmp_path, Hive("SYSTEM", small_system()), spoil=replaced("hiberfil.sys", make))
    volume = overlay(image, tmp_path / "volume.qcow2")
    with pytest.raises(RecoveryError, match="was hibernated"):
        repair([volume], TARGET, tmp_path / "record")


def test_a_link_in_a_folders_place_leads_nowhere_but_into_the_guest(tmp_path: Path) -> None:
    def spoil(root: Path) -> None:
        (root / "elsewhere").mkdir()
        (root / "Windows/Understudy").symlink_to("/elsewhere")

    image = uefi_disk(tmp_path, Hive("SYSTEM", small_system()), spoil=spoil)
    volume = overlay(image, tmp_path / "volume.qcow2")
    assert repair([volume], TARGET, tmp_path / "record").unrepaired == ()
    assert "elsewhere/first-boot.cmd" in files_of(volume, tmp_path)


def test_streams_beside_a_files_content_stay(tmp_path: Path) -> None:
    """NTFS keeps them as attributes of the file, which a rewritten file must not lose."""

    def spoil(root: Path) -> None:
        os.setxattr(root / SYSTEM, "user.Zone.Identifier", b"[ZoneTransfer]")

    image = uefi_disk(tmp_path, Hive("SYSTEM", small_system()), spoil=spoil)
    volume = overlay(image, tmp_path / "volume.qcow2")
    assert repair([volume], TARGET, tmp_path / "record").changes
    assert stream_of(volume, tmp_path) == b"[ZoneTransfer]"
    assert undo([volume], tmp_path / "record").left == []
    assert stream_of(volume, tmp_path) == b"[ZoneTransfer]"


def stream_of(volume: Path, folder: Path) -> bytes:
    inside(volume, folder)
    command = ["ntfscat", "-f", "-n", "Zone.Identifier", str(folder / "ntfs"), SYSTEM]
    return subprocess.run(command, capture_output=True, check=True).stdout
