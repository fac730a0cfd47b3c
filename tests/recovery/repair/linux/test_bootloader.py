"""UEFI's way in, and the serial console."""

from __future__ import annotations

from pathlib import Path

from recovery.repair.draft import Draft
from recovery.repair.linux import bootloader, surroundings
from recovery.repair.target import Bus, Firmware, Target
from tests.recovery.repair.folder import FolderFiles, after, system

UEFI = Target(bus=Bus.VIRTIO, firmware=Firmware.UEFI)
BIOS = Target(bus=Bus.VIRTIO, firmware=Firmware.BIOS)
WATCHED = Target(bus=Bus.VIRTIO, firmware=Firmware.BIOS, serial_console=True)


def test_the_loader_that_every_firmware_tries_is_made_from_the_distributions_own(tmp_path: Path) -> None:
    draft = Draft(FolderFiles(tmp_path, {"esp:/EFI/debian/grubx64.efi": "grub", "esp:/EFI/debian/grub.cfg": ""}))
    (finding,) = bootloader.repair_firmware(draft, system(has_esp=True), UEFI)
    assert after(draft.changes()) == {"esp:/EFI/BOOT/BOOTX64.EFI": "grub"}
    assert (finding.level, finding.repaired) == ("stop", True)


def test_with_secure_boots_shim_the_loader_that_it_starts_is_put_beside_it(tmp_path: Path) -> None:
    texts = {"esp:/EFI/rocky/shimx64.efi": "shim", "esp:/EFI/rocky/grubx64.efi": "grub"}
    draft = Draft(FolderFiles(tmp_path, texts))
    list(bootloader.repair_firmware(draft, system(has_esp=True), UEFI))
    assert after(draft.changes()) == {"esp:/EFI/BOOT/BOOTX64.EFI": "shim", "esp:/EFI/BOOT/grubx64.efi": "grub"}


def test_a_loader_that_is_there_in_whatever_case_is_left_alone(tmp_path: Path) -> None:
    draft = Draft(FolderFiles(tmp_path, {"esp:/efi/Boot/bootx64.efi": "x", "esp:/efi/debian/grubx64.efi": "grub"}))
    assert list(bootloader.repair_firmware(draft, system(has_esp=True), UEFI)) == []
    assert draft.changes() == ()


def test_firmware_that_the_disk_was_not_made_for_is_said_before_the_boot_fails(tmp_path: Path) -> None:
    draft = Draft(FolderFiles(tmp_path))
    (finding,) = bootloader.repair_firmware(draft, system(), UEFI)
    assert "no EFI partition" in finding.what
    assert not finding.repaired
    (finding,) = bootloader.repair_firmware(draft, system(has_esp=True, boots_by_bios=False), BIOS)
    assert "no code that a BIOS could start" in finding.what
    assert draft.changes() == ()


def test_a_serial_console_is_added_where_one_is_wanted(tmp_path: Path) -> None:
    texts = {
        "/boot/grub/grub.cfg": "menuentry 'x' {\n\tlinux\t/vmlinuz root=UUID=1 ro quiet\n\tinitrd /i\n}\n",
        "/etc/default/grub": 'GRUB_CMDLINE_LINUX="quiet"\n',
    }
    draft = Draft(FolderFiles(tmp_path, texts))
    assert list(bootloader.repair_console(draft, BIOS)) == []
    assert len(list(bootloader.repair_console(draft, WATCHED))) == 1
    console = "console=tty0 console=ttyS0,115200"
    assert after(draft.changes()) == {
        "/boot/grub/grub.cfg": texts["/boot/grub/grub.cfg"].replace("ro quiet", f"ro quiet {console}"),
        "/etc/default/grub": f'GRUB_CMDLINE_LINUX="{console} quiet"\n',
    }


def test_a_serial_console_that_is_there_is_left_alone(tmp_path: Path) -> None:
    draft = Draft(FolderFiles(tmp_path, {"/boot/grub/grub.cfg": " linux /vmlinuz root=UUID=1 console=ttyS0\n"}))
    assert list(bootloader.repair_console(draft, WATCHED)) == []


def test_cloud_init_that_knows_one_cloud_only_is_told_of_the_others(tmp_path: Path) -> None:
    texts = {"/usr/bin/cloud-init": "", "/etc/cloud/cloud.cfg.d/90_dpkg.cfg": "datasource_list: [ Azure ]\n"}
    draft = Draft(FolderFiles(tmp_path, texts))
    (finding,) = surroundings.repair(draft)
    assert "Azure" in finding.what
    (change,) = draft.changes()
    assert b"datasource_list: [Ec2, NoCloud, None]\npreserve_hostname: true\n" in (change.after or b"")


def test_lvms_list_of_this_machines_disks_is_set_aside(tmp_path: Path) -> None:
    path = "/etc/lvm/devices/system.devices"
    draft = Draft(
        FolderFiles(tmp_path, {path: "VERSION=1.1.2\nIDTYPE=sys_wwid IDNAME=naa.5000 DEVNAME=/dev/sda2 PVID=x\n"})
    )
    (finding,) = surroundings.repair(draft)
    assert finding.repaired
    assert after(draft.changes()) == {path: None}


def test_files_that_are_new_to_selinux_are_labelled_at_the_first_boot(tmp_path: Path) -> None:
    draft = Draft(FolderFiles(tmp_path, {"/etc/selinux/config": "SELINUX=enforcing\n", "/etc/fstab": "x\n"}))
    draft.write_text("/etc/fstab", "y\n", "overwritten in place: it keeps its label")
    draft.write("esp:/EFI/BOOT/BOOTX64.EFI", b"", "FAT has no labels")
    assert list(surroundings.label_new_files(draft)) == []
    draft.write("/etc/systemd/network/00-understudy.link", b"", "new")
    assert len(list(surroundings.label_new_files(draft))) == 1
    assert "/.autorelabel" in after(draft.changes())
