"""Disks of a Windows, as far as boot repair looks at them: GPT with an EFI partition, or DOS with "System Reserved".

What starts from the DOS one is no Windows but a boot sector that stands in for it.
"""

from __future__ import annotations

import shutil
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from recovery.repair.windows.bcd import Place
from recovery.repair.windows.hive import Hive
from tests.recovery.repair.images import run
from tests.recovery.repair.windows.making import hive_with, program
from tests.recovery.repair.windows.test_bcd import LOADER, MANAGER, element

MIB = 1 << 20
TOOLS = ("mkntfs", "ntfs-3g", "ntfscat", "mkfs.vfat", "mcopy", "sfdisk", "qemu-system-x86_64")
NEEDS = [
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


def windows_tree(
    folder: Path, system: Hive, hibernation: bytes = b"", drivers: tuple[str, ...] = ("stornvme",)
) -> Path:
    for name, content in (
        (SYSTEM, system.content),
        *((f"Windows/System32/drivers/{driver}.sys", program()) for driver in drivers),
        ("hiberfil.sys", hibernation.ljust(9 * MIB, b"\0")),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def ntfs(tree: Path, size_mib: int, spoil: Callable[[Path], object] = lambda _: None) -> bytes:
    """`spoil` is given the folder where it is mounted, with the tree in it."""
    image, folder = tree.with_suffix(".ntfs"), tree.with_suffix(".mounted")
    with open(image, "wb") as file:
        file.truncate(size_mib * MIB)
    run("mkntfs", "-F", "-Q", "-q", str(image))
    folder.mkdir()
    run("ntfs-3g", str(image), str(folder))
    try:
        shutil.copytree(tree, folder, dirs_exist_ok=True, copy_function=shutil.copyfile)
        spoil(folder)
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


def uefi_disk(
    folder: Path, system: Hive, hibernation: bytes = b"", spoil: Callable[[Path], object] = lambda _: None
) -> Path:
    stale = uuid.UUID(int=7)  # a disk that this Windows was on before
    store = bcd_store(Place.gpt(stale, ESP), Place.gpt(stale, WINDOWS))
    script = f"label: gpt\nlabel-id: {DISK}\nstart=2048, size=40MiB, type=U, uuid={ESP}\n"
    script += f"start=83968, size=64MiB, type=EBD0A0A2-B9E5-4433-87C0-68B6B72699C7, uuid={WINDOWS}\n"
    tree = windows_tree(folder / "tree", system, hibernation)
    return disk(folder, script, (1, efi_partition(folder, store)), (41, ntfs(tree, 64, spoil)))


def bios_disk(folder: Path, system: Hive, starter: bytes = b"", drivers: tuple[str, ...] = ("atapi",)) -> Path:
    """`starter`: code for its first sector."""
    reserved = folder / "reserved"
    (reserved / "Boot").mkdir(parents=True)
    (reserved / "bootmgr").write_bytes(b"boot manager")
    (reserved / "Boot/BCD").write_bytes(bcd_store(Place.dos(SIGNATURE, MIB), Place.dos(SIGNATURE, 17 * MIB)))
    script = f"label: dos\nlabel-id: {SIGNATURE:#x}\nstart=2048, size=16MiB, type=7, bootable\n"
    script += "start=34816, size=64MiB, type=7\n"
    tree = windows_tree(folder / "tree", system, drivers=drivers)
    image = disk(folder, script, (1, ntfs(reserved, 16)), (17, ntfs(tree, 64)))
    with open(image, "r+b") as file:
        file.write(starter[:440])
    return image


def stand_in(says: str) -> bytes:
    """A boot sector that writes this to the first serial port, waits for the power button, and switches off."""
    code = bytes.fromhex(
        "31C0 8ED8 BAF803 BE0000 FC"  # xor ax, ax; mov ds, ax; mov dx, 3F8h; mov si, text; cld
        "AC 84C0 7403 EE EBF8"  # next: lodsb; test al, al; jz on; out dx, al; jmp next
        "BA0206 B80001 EF FB"  # on: mov dx, 602h; mov ax, 100h; out dx, ax (wants the button); sti
        "F4 BA0006 ED F6C401 74F6"  # wait: hlt; mov dx, 600h; in ax, dx; test ah, 1; jz wait
        "BA0406 B80020 EF EBFE"  # mov dx, 604h; mov ax, 2000h; out dx, ax (off)
    )
    text = (0x7C00 + len(code)).to_bytes(2, "little")
    return code.replace(b"\xbe\0\0", b"\xbe" + text) + says.encode() + b"\r\n\0"


def inside(volume: Path, folder: Path, start_mib: int = 41) -> Callable[[str], bytes]:
    """Files of a disk, read without a worker: it starts at `start_mib`, and the EFI partition at 1."""
    raw = folder / "raw"
    run("qemu-img", "convert", "-U", "-O", "raw", str(volume), str(raw))
    with open(raw, "rb") as file, open(folder / "ntfs", "wb") as part:
        file.seek(start_mib * MIB)
        part.write(file.read(64 * MIB))

    def read(path: str) -> bytes:
        command = ["ntfscat", "-f", folder / "ntfs", path.removeprefix("/")]
        if path.startswith("esp:"):
            command = ["mcopy", "-n", "-i", f"{raw}@@1M", f"::{path[4:]}", "-"]
        return subprocess.run(command, capture_output=True, check=True).stdout

    return read


def files_of(volume: Path, folder: Path, start_mib: int = 41) -> dict[str, bytes]:
    """All plain files of the Windows volume."""
    inside(volume, folder, start_mib)
    place = folder / "looked-at"
    place.mkdir(exist_ok=True)
    run("ntfs-3g", "-o", "ro", str(folder / "ntfs"), str(place))
    try:
        return {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}
    finally:
        run("umount", str(place))
