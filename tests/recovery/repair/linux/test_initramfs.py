"""Drivers added behind a boot archive, from the image's own modules."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import stat
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from recovery.repair import cpio
from recovery.repair.draft import Draft
from recovery.repair.linux import initramfs
from recovery.repair.record import FileChange, Finding
from recovery.repair.target import Bus, Firmware, Target
from tests.recovery.repair.folder import FolderFiles

VERSION = "6.1.0-9-amd64"
MODULES = f"/lib/modules/{VERSION}"
ARCHIVE = f"/boot/initrd.img-{VERSION}"
DEPENDENCIES = """\
kernel/drivers/block/virtio_blk.ko: kernel/drivers/virtio/virtio_ring.ko kernel/drivers/virtio/virtio.ko
kernel/drivers/virtio/virtio_pci.ko: kernel/drivers/virtio/virtio_ring.ko kernel/drivers/virtio/virtio.ko
kernel/drivers/virtio/virtio_ring.ko:
kernel/drivers/virtio/virtio.ko:
kernel/drivers/nvme/host/nvme.ko: kernel/drivers/nvme/host/nvme-core.ko
kernel/drivers/nvme/host/nvme-core.ko:
kernel/lib/crc64-rocksoft.ko:
"""
EARLY = cpio.pack([cpio.folder("kernel"), cpio.Entry("kernel/microcode", stat.S_IFREG | 0o644, b"\1" * 999)])
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "none": bytes,
    "gzip": gzip.compress,
    "xz": lambda content: lzma.compress(content, check=lzma.CHECK_CRC32),
    "lzma": lambda content: lzma.compress(content, format=lzma.FORMAT_ALONE),
    "bzip2": bz2.compress,
    "zstd": zstandard.ZstdCompressor().compress,
}


def archive(*modules: str) -> bytes:
    entries = [cpio.Entry(f"usr/lib/modules/{VERSION}/kernel/{name}", stat.S_IFREG | 0o644, b"ELF") for name in modules]
    return cpio.pack([cpio.folder("usr"), cpio.Entry("lib", stat.S_IFLNK | 0o777, b"usr/lib"), *entries])


def tree(tmp_path: Path, content: bytes, **more: str) -> FolderFiles:
    texts = {
        f"{MODULES}/modules.dep": DEPENDENCIES,
        f"{MODULES}/modules.softdep": "softdep nvme_core pre: crc64_rocksoft\n",
        f"{MODULES}/modules.builtin": "kernel/drivers/scsi/sd_mod.ko\n",
        f"{MODULES}/modules.alias.bin": "index",
        **{f"{MODULES}/{line.partition(':')[0]}": f"module {line}" for line in DEPENDENCIES.splitlines()},
    }
    files = FolderFiles(tmp_path, texts | more)
    files.write(ARCHIVE, content)
    return files


def repaired(files: FolderFiles, bus: Bus) -> tuple[list[Finding], tuple[FileChange, ...]]:
    draft = Draft(files)
    findings = list(initramfs.repair(draft, Target(bus=bus, firmware=Firmware.BIOS)))
    return findings, draft.changes()


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_what_a_driver_needs_is_added_behind_the_archive_however_it_is_compressed(
    tmp_path: Path, compression: str
) -> None:
    present = EARLY + COMPRESSIONS[compression](archive("drivers/ata/ata_piix.ko", "drivers/virtio/virtio.ko"))
    files = tree(tmp_path, present)
    (finding,), (change,) = repaired(files, Bus.VIRTIO)
    assert (finding.level, finding.repaired) == ("stop", True)
    assert "virtio_pci, virtio_blk" in finding.what
    assert (change.path, change.before, change.kept_bytes) == (ARCHIVE, b"", len(present))
    files.write(change.path, change.after or b"", kept_bytes=change.kept_bytes)
    whole = files.read(ARCHIVE) or b""
    assert whole.startswith(present)
    assert initramfs.contents(whole) == {"ata_piix", "virtio", "virtio_blk", "virtio_pci", "virtio_ring"}
    assert repaired(files, Bus.VIRTIO) == ([], ()), "once is enough"


def test_an_archive_that_is_compressed_in_an_unknown_way_is_added_to_once(tmp_path: Path) -> None:
    files = tree(tmp_path, b"\x02\x21\x4c\x18" + b"lz4 " * 999, **{f"/boot/config-{VERSION}": "CONFIG_RD_GZIP=y\n"})
    _, (change,) = repaired(files, Bus.NVME)
    files.write(change.path, change.after or b"", kept_bytes=change.kept_bytes)
    assert repaired(files, Bus.NVME) == ([], ())


def test_what_is_added_leaves_links_of_the_archive_alone_and_has_its_folders_first(tmp_path: Path) -> None:
    _, (change,) = repaired(tree(tmp_path, archive()), Bus.NVME)
    assert change.kept_bytes % 4 == 0
    names = [name for name, _ in cpio.names(io.BytesIO((change.after or b"").lstrip(b"\0")))]
    assert "lib" not in names, "it may be a link, and a folder would take its place"
    below = f"lib/modules/{VERSION}"
    assert f"{below}/modules.dep" in names
    assert f"{below}/modules.alias.bin" in names
    assert f"{below}/kernel/lib/crc64-rocksoft.ko" in names, "needed softly"
    for name in names:
        parent = name.rpartition("/")[0]
        assert parent in ("", "lib") or names.index(parent) < names.index(name)


def test_drivers_that_are_there_or_built_in_are_not_added(tmp_path: Path) -> None:
    ready = archive("drivers/nvme/host/nvme.ko.xz", "drivers/nvme/host/nvme-core.ko.xz", "lib/crc64-rocksoft.ko")
    assert repaired(tree(tmp_path, ready), Bus.NVME) == ([], ())
    assert repaired(tree(tmp_path, archive("drivers/ata/ahci.ko")), Bus.AHCI) == ([], ())


def test_a_kernel_without_the_driver_is_said_to_stay_away(tmp_path: Path) -> None:
    (finding,), changes = repaired(tree(tmp_path, archive()), Bus.AHCI)
    assert (finding.level, finding.repaired, changes) == ("stop", False, ())
    assert "no driver ahci" in finding.what


def test_an_old_kernel_without_the_driver_does_not_matter_beside_one_that_has_it(tmp_path: Path) -> None:
    files = tree(tmp_path, archive(), **{"/lib/modules/4.9/modules.builtin": "", "/boot/initrd.img-4.9": ""})
    old, new = sorted(repaired(files, Bus.NVME)[0], key=lambda finding: finding.repaired)
    assert (old.level, old.repaired) == ("warn", False)
    assert (new.level, new.repaired) == ("stop", True)


@pytest.mark.parametrize("name", ["../../../etc/shadow", "kernel/../../../../etc/shadow", "/etc/shadow"])
def test_modules_are_taken_from_the_modules_folder_only(tmp_path: Path, name: str) -> None:
    files = tree(tmp_path, archive())
    files.write("/etc/shadow", b"secret")
    files.write(f"{MODULES}/modules.dep", f"kernel/drivers/nvme/host/nvme.ko: {name}\n{name}:\n".encode())
    _, changes = repaired(files, Bus.NVME)
    assert all(b"secret" not in (change.after or b"") for change in changes)


def test_a_bomb_is_unpacked_no_further_than_any_real_archive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(initramfs, "_MAX_UNPACKED_BYTES", 1 << 20)
    entry = cpio.Entry("usr/lib/modules/1/zeros.ko", stat.S_IFREG | 0o644, bytes(64 << 20))
    assert initramfs.contents(gzip.compress(cpio.pack([entry]))) <= {"zeros"}


@given(
    st.binary(max_size=300),
    st.sampled_from([b"", b"070701", b"\x1f\x8b\x08\0", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"]\0\0"]),
)
def test_whatever_an_archive_holds_it_is_looked_at_without_harm(content: bytes, head: bytes) -> None:
    initramfs.contents(head + content)
    initramfs.contents(archive("a.ko")[: len(content)] + content)


def test_a_header_of_an_archive_that_claims_too_much_is_refused() -> None:
    header = b"070701" + b"".join(b"%08X" % value for value in (1, 0o100644, 0, 0, 1, 0, 0xFFFFFFFF, 0, 0, 0, 0, 2, 0))
    with pytest.raises(cpio.BadArchive):
        list(cpio.names(io.BytesIO(header + b"a\0" + struct.pack("<Q", 0))))


def test_archives_that_systemd_keeps_on_the_efi_partition_are_looked_at_too(tmp_path: Path) -> None:
    files = tree(tmp_path, archive("drivers/nvme/host/nvme.ko", "drivers/nvme/host/nvme-core.ko"))
    files.write(f"esp:/0123abcd/{VERSION}/initrd", archive())
    (finding,), (change,) = repaired(files, Bus.NVME)
    assert change.path == f"esp:/0123abcd/{VERSION}/initrd"
    assert finding.repaired


def test_archives_that_belong_to_no_kernel_we_know_are_said_to_be_unlooked_at(tmp_path: Path) -> None:
    (finding,), changes = repaired(FolderFiles(tmp_path, {"/boot/initramfs-linux.img": "x"}), Bus.NVME)
    assert (finding.level, finding.repaired, changes) == ("warn", False, ())
