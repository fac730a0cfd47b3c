"""What would stop a machine from booting elsewhere, found on trees of files as such machines have them."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.bootability import boot_findings


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def levels(root: Path, boot_mode: str = "bios") -> list[str]:
    return [finding["level"] for finding in boot_findings(root, boot_mode)]


def test_a_machine_that_boots_anywhere_has_nothing_to_warn_of(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/cmdline": "BOOT_IMAGE=/vmlinuz root=UUID=0f3a ro console=tty0 console=ttyS0,115200",
            "etc/fstab": "# /dev/sda1 was here\nUUID=0f3a / ext4 defaults 0 1\ntmpfs /tmp tmpfs\n",
            "etc/initramfs-tools/initramfs.conf": "# what to hold\nMODULES=most\n",
            "etc/network/interfaces": "auto lo\niface lo inet loopback\nsource interfaces.d/*\n",
            "etc/systemd/network/any.network": "[Match]\nName=en* eth*\n\n[Network]\nDHCP=yes\n",
            "boot/efi/EFI/BOOT/BOOTX64.EFI": "",
        },
    )
    assert set(levels(root, "uefi")) == {"ok"}


@pytest.mark.parametrize(
    ("files", "level", "words"),
    [
        ({"proc/cmdline": "root=/dev/sda1 console=ttyS0"}, "stop", "names the root disk /dev/sda1"),
        ({"proc/cmdline": "root=/dev/nvme0n1p2 console=ttyS0"}, "stop", "/dev/nvme0n1p2"),
        ({"proc/cmdline": "root=UUID=1 resume=/dev/sda5 console=ttyS0"}, "warn", "swap disk /dev/sda5"),
        ({"proc/cmdline": "root=UUID=1"}, "warn", "no serial console"),
        ({"etc/fstab": "/dev/sda1 / ext4 defaults 0 1"}, "stop", "/etc/fstab names /dev/sda1 for /"),
        ({"etc/fstab": "/dev/vdb1 /data xfs defaults,nofail 0 2"}, "warn", "for /data"),
        ({"etc/fstab": "/dev/sda5 none swap sw 0 0"}, "warn", "for swap"),
        ({"etc/initramfs-tools/conf.d/driver-policy": "MODULES=dep"}, "stop", "MODULES=dep"),
        ({"usr/lib/dracut/dracut.conf.d/01-dist.conf": 'hostonly="yes"\n'}, "stop", "dracut hostonly"),
        ({"etc/network/interfaces": "allow-hotplug ens3\niface ens3 inet dhcp\n"}, "warn", "/interfaces binds"),
        ({"etc/netplan/50.yaml": "network:\n  ethernets:\n    ens3:\n      dhcp4: true\n"}, "warn", "50.yaml"),
        ({"etc/netplan/50.yaml": "x:\n      match:\n        macaddress: 52:54:00:12:34:56\n"}, "warn", "50.yaml"),
        ({"etc/systemd/network/lan.network": "[Match]\nName=enp1s0\n"}, "warn", "lan.network"),
        ({"etc/sysconfig/network-scripts/ifcfg-eth0": "DEVICE=eth0\n"}, "warn", "ifcfg-eth0"),
        ({"etc/NetworkManager/system-connections/a.nmconnection": "interface-name=eth0\n"}, "warn", "a.nmconnection"),
        ({"etc/udev/rules.d/70-persistent-net.rules": 'SUBSYSTEM=="net", NAME="eth0"\n'}, "warn", "70-persistent-net"),
    ],
)
def test_what_ties_a_machine_to_its_hardware_is_found_with_a_way_out(
    tmp_path: Path, files: dict[str, str], level: str, words: str
) -> None:
    (finding,) = [one for one in boot_findings(tree(tmp_path, files), "bios") if one["level"] != "ok"]
    assert finding["level"] == level
    assert words in finding["what"]
    assert finding["way_out"]


def test_the_last_setting_of_the_initramfs_counts(tmp_path: Path) -> None:
    files = {"etc/initramfs-tools/initramfs.conf": "MODULES=dep", "etc/initramfs-tools/conf.d/all": "MODULES=most"}
    assert levels(tree(tmp_path, files)) == ["ok"]


def test_dracut_with_the_drivers_added_is_fine(tmp_path: Path) -> None:
    files = {
        "usr/lib/dracut/dracut.conf.d/01-dist.conf": 'hostonly="yes"\n',
        "etc/dracut.conf.d/understudy.conf": 'add_drivers+=" virtio_pci virtio_blk nvme "\n',
    }
    assert levels(tree(tmp_path, files)) == []


@pytest.mark.parametrize(
    ("loader", "level"),
    [
        ("boot/efi/EFI/BOOT/BOOTX64.EFI", "ok"),
        ("efi/efi/boot/bootx64.efi", "ok"),
        ("boot/efi/EFI/debian/grubx64.efi", "stop"),
    ],
)
def test_uefi_needs_the_loader_that_every_firmware_tries(tmp_path: Path, loader: str, level: str) -> None:
    root = tree(tmp_path, {loader: ""})
    assert levels(root, "uefi") == [level]
    assert levels(root, "bios") == []


def test_an_unreadable_or_empty_machine_says_nothing(tmp_path: Path) -> None:
    assert boot_findings(tmp_path, "uefi") == []
    (tmp_path / "etc/fstab").mkdir(parents=True)
    (tmp_path / "etc/initramfs-tools/initramfs.conf").mkdir(parents=True)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cmdline").write_bytes(b"\xff\xfe")
    assert "stop" not in levels(tmp_path)
