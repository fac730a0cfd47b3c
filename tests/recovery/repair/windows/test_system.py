"""A Windows' disks, as far as boot repair looks at them, repaired and undone in a real worker. Nobody boots them."""

from __future__ import annotations

import shutil
import struct
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.protocol.errors import RecoveryError
from recovery.repair.record import KeyChange
from recovery.repair.repair import repair, undo
from recovery.repair.target import Bus, Firmware, Target
from recovery.repair.windows.bcd import Place, place_of
from recovery.repair.windows.edit import difference
from recovery.repair.windows.hive import Hive
from tests.recovery.repair.images import overlay, run
from tests.recovery.repair.windows.making import hive_with, program
from tests.recovery.repair.windows.test_bcd import LOADER, MANAGER, element

MIB = 1 << 20
TOOLS = ("mkntfs", "ntfs-3g", "ntfscat", "mkfs.vfat", "mcopy", "sfdisk", "qemu-system-x86_64")
pytestmark = [
    pytest.mark.root,
    pytest.mark.qemu,
    pytest.mark.long,
    pytest.mark.skipif(missing := [tool for tool in TOOLS if not shutil.which(tool)], reason=f"needs {missing}"),
    pytest.mark.usefixtures("hivex", "worker_parts"),
]
DISK = uuid.UUID("0e5e0000-0000-4000-8000-000000000001")
ESP, WINDOWS = (uuid.UUID(f"0e5e0000-0000-4000-8000-00000000000{number}") for number in (2, 3))
SIGNATURE = 0x5EED0001
SYSTEM = "Windows/System32/config/SYSTEM"


def bcd_store(starter: Place, windows: Place) -> bytes:
    values = {
        (element(MANAGER, "11000001"), "Element"): (3, starter.element()),
        (element(MANAGER, "23000003"), "Element"): (1, f"{LOADER}\0".encode("utf-16-le")),
        (element(LOADER, "21000001"), "Element"): (3, windows.element()),
        (element(LOADER, "250000e0"), "Element"): (3, (1).to_bytes(8, "little")),
    }
    return hive_with(values, "BCD")


def windows_tree(folder: Path, system: Hive, hibernation: bytes = b"") -> Path:
    for name, content in (
        (SYSTEM, system.content),
        ("Windows/System32/drivers/stornvme.sys", program()),
        ("hiberfil.sys", hibernation.ljust(9 * MIB, b"\0")),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def ntfs(tree: Path, size_mib: int) -> bytes:
    image, folder = tree.with_suffix(".ntfs"), tree.with_suffix(".mounted")
    with open(image, "wb") as file:
        file.truncate(size_mib * MIB)
    run("mkntfs", "-F", "-Q", "-q", str(image))
    folder.mkdir()
    run("ntfs-3g", str(image), str(folder))
    try:
        shutil.copytree(tree, folder, dirs_exist_ok=True, copy_function=shutil.copyfile)
    finally:
        run("umount", str(folder))
    return image.read_bytes()


def efi_partition(folder: Path, store: bytes) -> bytes:
    """With a boot manager, and without the path that every firmware tries."""
    image = folder / "esp"
    with open(image, "wb") as file:
        file.truncate(40 * MIB)
    run("mkfs.vfat", "-F", "32", str(image))
    for name, content in (("BCD", store), ("bootmgfw.efi", program(b"manager"))):
        (folder / name).write_bytes(content)
    run("mmd", "-i", str(image), "::EFI", "::EFI/Microsoft", "::EFI/Microsoft/Boot")
    run("mcopy", "-i", str(image), str(folder / "BCD"), str(folder / "bootmgfw.efi"), "::EFI/Microsoft/Boot/")
    return image.read_bytes()


def disk(folder: Path, script: str, *partitions: tuple[int, bytes]) -> Path:
    image = folder / "disk"
    with open(image, "wb") as file:
        file.truncate(partitions[-1][0] * MIB + len(partitions[-1][1]) + MIB)
    run("sfdisk", "--quiet", str(image), stdin=script)
    with open(image, "r+b") as file:
        for start_mib, content in partitions:
            file.seek(start_mib * MIB)
            file.write(content)
    return image


def uefi_disk(folder: Path, system: Hive, hibernation: bytes = b"") -> Path:
    stale = uuid.UUID(int=7)  # a disk that this Windows was on before
    store = bcd_store(Place.gpt(stale, ESP), Place.gpt(stale, WINDOWS))
    script = f"label: gpt\nlabel-id: {DISK}\nstart=2048, size=40MiB, type=U, uuid={ESP}\n"
    script += f"start=83968, size=64MiB, type=EBD0A0A2-B9E5-4433-87C0-68B6B72699C7, uuid={WINDOWS}\n"
    tree = windows_tree(folder / "tree", system, hibernation)
    return disk(folder, script, (1, efi_partition(folder, store)), (41, ntfs(tree, 64)))


def left_open(image: Path) -> Path:
    """The disk as of a server that was running: its NTFS journal says that it was in use (and holds nothing)."""
    content = image.read_bytes()
    journal = content.index(b"\xff" * MIB)
    page = bytearray(4096)
    page[:4] = b"RSTR"
    # update sequence; checkpoint; page sizes; restart area at 0x30; version 1.1
    struct.pack_into("<2HQ2I3H", page, 4, 0x1E, 9, 0, 4096, 4096, 0x30, 1, 1)
    struct.pack_into("<H", page, 0x1E, 1)
    # last sequence; one client, in use; flags; 64 bits of sequence numbers; lengths; the journal's size
    struct.pack_into("<Q4HI2HQI2H", page, 0x30, 0x100, 1, 0xFFFF, 0, 0, 0x2C, 0x30 + 0xA0, 0x30, 2 * MIB, 0, 0x30, 0x40)
    struct.pack_into("<2Q4H4xI8s", page, 0x60, 0, 0, 0xFFFF, 0xFFFF, 0, 0, 8, b"N\0T\0F\0S\0")
    for end in range(510, 4096, 512):
        page[end : end + 2] = b"\1\0"
    with open(image, "r+b") as file:
        for copy in (0, 4096):
            file.seek(journal + copy)
            file.write(page)
    return image


def test_a_journal_that_cannot_be_replayed_is_not_thrown_away(windows_10: Hive, tmp_path: Path) -> None:
    volume = overlay(left_open(uefi_disk(tmp_path, windows_10)), tmp_path / "volume.qcow2")
    before = volume.read_bytes()
    with pytest.raises(RecoveryError, match=r"journal of the NTFS volume .* cannot be replayed"):
        repair([volume], Target(bus=Bus.NVME, firmware=Firmware.UEFI), tmp_path / "record")
    assert volume.read_bytes() == before


def inside(volume: Path, folder: Path) -> Callable[[str], bytes]:
    """Files of a repaired UEFI disk, read without a worker."""
    raw = folder / "raw"
    run("qemu-img", "convert", "-O", "raw", str(volume), str(raw))
    with open(raw, "rb") as file, open(folder / "ntfs", "wb") as part:
        file.seek(41 * MIB)
        part.write(file.read(64 * MIB))

    def read(path: str) -> bytes:
        command = ["ntfscat", "-f", folder / "ntfs", path.removeprefix("/")]
        if path.startswith("esp:"):
            command = ["mcopy", "-n", "-i", f"{raw}@@1M", f"::{path[4:]}", "-"]
        return subprocess.run(command, capture_output=True, check=True).stdout

    return read


def test_a_windows_for_uefi_is_repaired_and_undone(windows_10: Hive, tmp_path: Path) -> None:
    volume = overlay(uefi_disk(tmp_path, windows_10), tmp_path / "volume.qcow2")
    record = repair([volume], Target(bus=Bus.NVME, firmware=Firmware.UEFI), tmp_path / "record")
    assert record.unrepaired == ()
    read = inside(volume, tmp_path)
    changed = difference(windows_10, Hive("SYSTEM", read(SYSTEM)))
    assert {key for key, _ in changed} == {r"ControlSet001\Services\stornvme\StartOverride"}
    assert read("esp:/EFI/Boot/bootx64.efi") == program(b"manager")
    store = Hive("BCD", read("esp:/EFI/Microsoft/Boot/BCD"))
    for thing, number, partition in ((MANAGER, "11000001", ESP), (LOADER, "21000001", WINDOWS)):
        value = store.value(element(thing, number), "Element")
        assert value is not None
        assert place_of(value.data) == Place.gpt(DISK, partition)
    report = undo([volume], tmp_path / "record")
    assert report.left == []
    assert difference(windows_10, Hive("SYSTEM", inside(volume, tmp_path)(SYSTEM))) == {}


def test_a_hibernated_windows_is_refused_and_its_volume_stays_as_it_was(windows_10: Hive, tmp_path: Path) -> None:
    volume = overlay(uefi_disk(tmp_path, windows_10, b"HIBR"), tmp_path / "volume.qcow2")
    before = volume.read_bytes()
    with pytest.raises(RecoveryError, match="hibernat"):
        repair([volume], Target(bus=Bus.NVME, firmware=Firmware.UEFI), tmp_path / "record")
    assert volume.read_bytes() == before


def test_a_windows_for_bios_is_found_behind_its_system_partition(windows_7: Hive, tmp_path: Path) -> None:
    tree = windows_tree(tmp_path / "tree", windows_7)
    (tree / "Windows/System32/drivers/msahci.sys").write_bytes(program())
    reserved = tmp_path / "reserved"
    (reserved / "Boot").mkdir(parents=True)
    (reserved / "bootmgr").write_bytes(b"boot manager")
    (reserved / "Boot/BCD").write_bytes(bcd_store(Place.dos(SIGNATURE, MIB), Place.dos(SIGNATURE, 17 * MIB)))
    script = f"label: dos\nlabel-id: {SIGNATURE:#x}\nstart=2048, size=16MiB, type=7, bootable\n"
    script += "start=34816, size=64MiB, type=7\n"
    image = disk(tmp_path, script, (1, ntfs(reserved, 16)), (17, ntfs(tree, 64)))
    volume = overlay(image, tmp_path / "volume.qcow2")
    record = repair([volume], Target(bus=Bus.AHCI, firmware=Firmware.BIOS), tmp_path / "record")
    assert record.unrepaired == ()
    assert {change.key for change in record.changes if isinstance(change, KeyChange)} == {
        r"ControlSet001\services\msahci"
    }
