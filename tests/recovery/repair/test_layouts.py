"""Systems as distributions lay them out: found, mounted and repaired on each of their filesystems."""

from __future__ import annotations

import contextlib
import io
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from recovery.repair.record import RepairRecord
from recovery.repair.repair import repair
from recovery.repair.target import Bus, Firmware, Target
from recovery.repair.worker import Worker
from tests.recovery.repair.images import missing, overlay, run, truncate
from tests.recovery.repair.test_repair import MIB, make_tree

pytestmark = [pytest.mark.root, pytest.mark.qemu, pytest.mark.long]

needs_root = pytest.mark.skipif(missing() is not None, reason=str(missing()))
NVME = Target(bus=Bus.NVME, firmware=Firmware.BIOS)
DISK_BYTES = 512 * MIB


def paths(record: RepairRecord) -> set[str]:
    return {str(getattr(change, "path", "")) for change in record.changes}


@contextlib.contextmanager
def mounted(image: Path, kind: str, folder: Path) -> Iterator[Path]:
    folder.mkdir()
    run("mount", "-t", kind, "-o", "loop", str(image), str(folder))
    try:
        yield folder
    finally:
        run("umount", str(folder))


def xfs(tree: Path, filesystem: Path) -> None:
    run("mkfs.xfs", "-q", str(filesystem))
    with mounted(filesystem, "xfs", filesystem.with_suffix(".mounted")) as folder:
        shutil.copytree(tree, folder, dirs_exist_ok=True)


def btrfs(tree: Path, filesystem: Path) -> None:
    run("mkfs.btrfs", "-q", str(filesystem))
    with mounted(filesystem, "btrfs", filesystem.with_suffix(".mounted")) as folder:
        run("btrfs", "subvolume", "create", str(folder / "@"))
        shutil.copytree(tree, folder / "@", dirs_exist_ok=True)


@needs_root
@pytest.mark.parametrize("fill", [xfs, btrfs])
def test_a_root_on_xfs_or_in_a_subvolume_of_btrfs_is_repaired(
    fill: Callable[[Path, Path], None], worker_parts: None, tmp_path: Path
) -> None:
    tree = make_tree(tmp_path / "tree")
    table = (tree / "etc/fstab").read_text()
    (tree / "etc/fstab").write_text(table.replace("ext4", fill.__name__))
    filesystem, disk = tmp_path / "filesystem", tmp_path / "disk.raw"
    truncate(filesystem, DISK_BYTES - MIB)
    fill(tree, filesystem)
    truncate(disk, DISK_BYTES)
    run("sfdisk", "--quiet", str(disk), stdin="label: dos\n2048,,L,*\n")
    run("dd", f"if={filesystem}", f"of={disk}", "bs=1M", "seek=1", "conv=notrunc,sparse", "status=none")
    record = repair([overlay(disk, tmp_path / "volume.qcow2")], NVME, tmp_path / "run")
    assert record.system.endswith(f", {fill.__name__}")
    assert {"/etc/fstab", "/boot/grub/grub.cfg"} <= paths(record)
    assert not [finding for finding in record.unrepaired if "BIOS" not in finding.what]


@needs_root
def test_a_root_on_lvm_over_two_disks_with_boot_and_efi_partitions_is_repaired(
    worker_parts: None, tmp_path: Path
) -> None:
    """As the Red Hat family's installer lays it out, but that ext2 stands in for XFS."""
    tree = make_tree(tmp_path / "tree")
    boot = tmp_path / "boot"
    (tree / "boot").rename(boot)
    (tree / "boot").mkdir()
    (tree / "etc/fstab").write_text(
        "/dev/mapper/rl-root / ext4 defaults 0 0\n/dev/sda2 /boot ext4 defaults 0 0\n"
        "/dev/sda1 /boot/efi vfat umask=0077 0 2\n/dev/mapper/rl-swap none swap defaults 0 0\n"
    )
    disks = [tmp_path / "first.qcow2", tmp_path / "second.qcow2"]
    table = tmp_path / "table.raw"
    truncate(table, 96 * MIB)
    run("sfdisk", "--quiet", str(table), stdin="label: gpt\n2048,24M,U\n,24M,L\n,,V\n")
    run("qemu-img", "convert", "-O", "qcow2", str(table), str(disks[0]))
    run("qemu-img", "create", "-q", "-f", "qcow2", str(disks[1]), "64M")
    with Worker(disks, "tcg") as worker:
        for driver in ("dm-mod", "ext4", "vfat", "nls_cp437", "nls_ascii"):
            worker.load(driver)
        lvm = "/bin/lvm {} --config 'activation{{udev_sync=0 udev_rules=0}}' -y {} >/dev/null"
        worker.shell("mkdosfs /dev/vda1 && mke2fs /dev/vda2 >/dev/null && mkdir /esp /boot")
        worker.shell(lvm.format("pvcreate", "/dev/vda3 /dev/vdb"))
        worker.shell(lvm.format("vgcreate", "rl /dev/vda3 /dev/vdb"))
        worker.shell(lvm.format("lvcreate", "-Wn -Zn -L 72M -n root rl"))  # more than either disk has
        worker.shell(lvm.format("lvcreate", "-Wn -Zn -L 8M -n swap rl"))
        worker.shell("mke2fs /dev/mapper/rl-root >/dev/null && mkswap /dev/mapper/rl-swap >/dev/null")
        worker.shell("mount -t vfat /dev/vda1 /esp && mkdir -p /esp/EFI/rocky && echo x >/esp/EFI/rocky/grubx64.efi")
        worker.shell("mount -t ext4 /dev/vda2 /boot && mount -t ext4 /dev/mapper/rl-root /guest")
        for folder, place in ((tree, "/guest"), (boot, "/boot")):
            packed = io.BytesIO()
            with tarfile.open(fileobj=packed, mode="w") as tar:
                tar.add(folder, ".")
            worker.put(packed.getvalue(), "/packed")
            worker.run("tar", "-x", "-f", "/packed", "-C", place)
        worker.shell("umount /esp /boot /guest")
        worker.power_off()
    record = repair(disks, Target(bus=Bus.NVME, firmware=Firmware.UEFI), tmp_path / "run")
    assert record.unrepaired == ()
    assert {"esp:/EFI/BOOT/BOOTX64.EFI", "/boot/grub/grub.cfg", "/etc/fstab"} <= paths(record)
    assert any(path.startswith("/boot/initrd.img-") for path in paths(record))
    (table_change,) = [change for change in record.changes if getattr(change, "path", "") == "/etc/fstab"]
    after = (getattr(table_change, "after", b"") or b"").decode()
    assert after.startswith("/dev/mapper/rl-root / ext4"), "a logical volume is called the same everywhere"
    assert after.count("UUID=") == 2
