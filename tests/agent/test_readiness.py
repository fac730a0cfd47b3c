"""On which controllers a machine would boot as it is, told only where it is certain."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.bootability import boot_findings
from agent.readiness import boot_files, boots_on

GOOD = {
    "proc/cmdline": "root=UUID=0f3a ro console=ttyS0",
    "etc/fstab": "UUID=0f3a / ext4 defaults 0 1\n",
    "etc/initramfs-tools/initramfs.conf": "MODULES=dep\n",
    "boot/initrd.img-6.1.0": "archive",
}


def tree(root: Path, files: dict[str, str], *disks: str) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    for disk in disks:
        (root / "sys/block" / disk).mkdir(parents=True)
    return root


def ready(root: Path) -> list[str]:
    return boots_on(root, boot_findings(root, "bios"))


def test_what_it_boots_from_at_home_it_boots_from_elsewhere(tmp_path: Path) -> None:
    assert ready(tree(tmp_path, GOOD, "vda", "vdb", "loop0", "sr0")) == ["virtio"]


@pytest.mark.parametrize("disks", [(), ("sda",), ("vda", "sda")])
def test_other_or_mixed_disks_say_nothing(tmp_path: Path, disks: tuple[str, ...]) -> None:
    assert ready(tree(tmp_path, GOOD, *disks)) == []


@pytest.mark.parametrize(
    "worse",
    [
        {"proc/cmdline": "root=/dev/vda1 console=ttyS0"},
        {"proc/cmdline": ""},
        {"etc/fstab": "/dev/vda5 none swap sw 0 0\n"},
        {"etc/network/interfaces": "iface ens3 inet dhcp\n"},
    ],
)
def test_whatever_else_stands_in_the_way_leaves_nothing_certain(tmp_path: Path, worse: dict[str, str]) -> None:
    assert ready(tree(tmp_path, GOOD | worse, "vda")) == []


def test_archives_made_for_any_machine_boot_on_any_controller_if_they_are_newer_than_the_setting(
    tmp_path: Path,
) -> None:
    root = tree(tmp_path, GOOD | {"etc/initramfs-tools/initramfs.conf": "MODULES=most\n"}, "sda")
    archive = root / "boot/initrd.img-6.1.0"
    os.utime(archive, (2e9, 2e9))
    assert ready(root) == ["ahci", "nvme", "virtio"]
    os.utime(archive, (1e9, 1e9))
    assert ready(root) == []


def test_the_hash_of_boot_files_changes_with_any_of_them(tmp_path: Path) -> None:
    root = tree(tmp_path, GOOD)
    before = boot_files(root)
    assert boot_files(root) == before
    (root / "boot/initrd.img-6.1.0").write_text("another archive")
    assert boot_files(root) != before
