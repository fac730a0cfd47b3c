"""Disks by what they hold instead of by what a kernel called them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest

from recovery.repair.draft import Draft
from recovery.repair.linux import names
from recovery.repair.record import Finding
from tests.recovery.repair.folder import ROOT_UUID, SWAP_UUID, FolderFiles, after, system

GRUB = """menuentry 'x' {{
  set root='hd0,msdos1'
  linux /vmlinuz root={root} ro quiet{more}
  initrd /initrd.img-6
}}
"""


def repaired(
    tmp_path: Path, texts: dict[str, str], sources: Sequence[str] = ()
) -> tuple[list[Finding], dict[str, str | None]]:
    draft = Draft(FolderFiles(tmp_path, {"/boot/initrd.img-6": "", **texts}))
    return list(names.repair(draft, dataclasses.replace(system(), sources=sources))), after(draft.changes())


@pytest.mark.parametrize(
    "name", ["/dev/sda1", "/dev/hda1", "/dev/vda1", "/dev/xvda1", "/dev/nvme0n1p1", "/dev/mmcblk0p1"]
)
def test_every_kernel_name_of_the_root_disk_becomes_its_uuid(tmp_path: Path, name: str) -> None:
    findings, changed = repaired(
        tmp_path,
        {"/boot/grub/grub.cfg": GRUB.format(root=name, more=""), "/etc/fstab": f"{name}  /  ext4  defaults 0 1\n"},
    )
    assert changed == {
        "/boot/grub/grub.cfg": GRUB.format(root=f"UUID={ROOT_UUID}", more=""),
        "/etc/fstab": f"UUID={ROOT_UUID}  /  ext4  defaults 0 1\n",
    }
    assert [finding.level for finding in findings] == ["stop", "stop"]
    assert all(finding.repaired for finding in findings)


@pytest.mark.parametrize(
    ("sources", "home"),
    [
        (["/dev/sdb"], "/dev/sdb1"),  # sda stayed at home
        (["/dev/sdc", "/dev/sda"], "/dev/sdc1"),
        (["/dev/nvme1n1"], "/dev/nvme1n1p1"),
        (["/srv/web01.img"], "/dev/sda1"),  # what an image file was called tells nothing
        (["/dev/disk/by-id/ata-1"], "/dev/sda1"),
    ],
)
def test_a_kernel_name_means_the_volume_that_was_called_so_at_home(
    tmp_path: Path, sources: list[str], home: str
) -> None:
    texts = {"/etc/fstab": f"{home} /srv ext4 defaults 0 2\n"}
    assert repaired(tmp_path, texts, sources)[1] == {"/etc/fstab": f"UUID={ROOT_UUID} /srv ext4 defaults 0 2\n"}


def test_the_name_of_a_disk_that_stayed_at_home_is_not_given_to_another(tmp_path: Path) -> None:
    texts = {"/etc/fstab": "/dev/sda1 /srv ext4 defaults 0 2\n"}
    assert repaired(tmp_path, texts, ["/dev/sdb"])[1] == {"/etc/fstab": "/dev/sda1 /srv ext4 defaults,nofail 0 2\n"}


def test_a_system_that_names_disks_by_uuid_is_left_alone(tmp_path: Path) -> None:
    table = f"""# /dev/sda1 was here
UUID={ROOT_UUID} / ext4 defaults 0 1
/dev/sr0 /media/cdrom udf,iso9660 user,noauto 0 0
UUID={SWAP_UUID} none swap sw 0 0
tmpfs /tmp tmpfs nosuid
nas:/x /x nfs defaults
LABEL=root /again ext4 ro
"""
    grub = GRUB.format(root=f"UUID={ROOT_UUID}", more=f" resume=UUID={SWAP_UUID}")
    assert repaired(tmp_path, {"/etc/fstab": table, "/boot/grub/grub.cfg": grub}) == ([], {})


def test_without_a_boot_archive_the_kernel_is_given_the_partitions_uuid(tmp_path: Path) -> None:
    draft = Draft(FolderFiles(tmp_path, {"/boot/grub/grub.cfg": GRUB.format(root="/dev/sda1", more="")}))
    list(names.repair(draft, system()))
    assert after(draft.changes()) == {"/boot/grub/grub.cfg": GRUB.format(root="PARTUUID=c0ffee00-01", more="")}


def test_swap_to_resume_from_is_found_by_uuid_or_not_waited_for(tmp_path: Path) -> None:
    text = GRUB.format(root=f"UUID={ROOT_UUID}", more=" resume=/dev/sda2 splash")
    _, changed = repaired(tmp_path / "known", {"/boot/grub/grub.cfg": text})
    assert f"quiet resume=UUID={SWAP_UUID} splash" in str(changed["/boot/grub/grub.cfg"])
    _, changed = repaired(tmp_path / "gone", {"/boot/grub/grub.cfg": text.replace("sda2", "sdb2")})
    assert "resume" not in str(changed["/boot/grub/grub.cfg"])


def test_what_the_next_update_of_grub_is_made_from_is_mended_too(tmp_path: Path) -> None:
    text = 'GRUB_CMDLINE_LINUX="root=/dev/sda1 quiet"\nGRUB_DISABLE_LINUX_UUID=true\n'
    _, changed = repaired(tmp_path, {"/etc/default/grub": text})
    assert changed["/etc/default/grub"] == (
        f'GRUB_CMDLINE_LINUX="root=UUID={ROOT_UUID} quiet"\n#GRUB_DISABLE_LINUX_UUID=true\n'
    )


def test_boot_entries_and_grubs_environment_of_the_red_hat_family_are_mended(tmp_path: Path) -> None:
    environment = "# GRUB Environment Block\nkernelopts=root=/dev/sda1 ro\n".ljust(1024, "#")
    entry = "title Rocky\nlinux /vmlinuz-5\noptions root=/dev/sda1 ro crashkernel=1G\n"
    _, changed = repaired(tmp_path, {"/boot/grub2/grubenv": environment, "/boot/loader/entries/a.conf": entry})
    assert changed["/boot/loader/entries/a.conf"] == entry.replace("/dev/sda1", f"UUID={ROOT_UUID}")
    mended = str(changed["/boot/grub2/grubenv"])
    assert f"kernelopts=root=UUID={ROOT_UUID} ro\n#" in mended
    assert len(mended) == 1024


@pytest.mark.parametrize("spec", ["/dev/sdb1", f"UUID={SWAP_UUID.replace('1', '9')}"])
def test_a_data_disk_that_was_not_replicated_is_not_waited_for(tmp_path: Path, spec: str) -> None:
    findings, changed = repaired(tmp_path, {"/etc/fstab": f"{spec}\t/srv\txfs\tdefaults,noatime\t0 2\n"})
    assert changed == {"/etc/fstab": f"{spec}\t/srv\txfs\tdefaults,noatime,nofail\t0 2\n"}
    assert [finding.level for finding in findings] == ["stop"]


def test_a_missing_disk_that_the_system_cannot_do_without_is_named_and_not_hidden(tmp_path: Path) -> None:
    (finding,), changed = repaired(tmp_path, {"/etc/fstab": "/dev/sdb1 /usr ext4 defaults 0 2\n"})
    assert changed == {}
    assert (finding.level, finding.repaired) == ("stop", False)
    assert "/dev/sdb1" in finding.what


def test_a_name_by_the_disks_serial_number_is_told_by_its_partition(tmp_path: Path) -> None:
    _, changed = repaired(tmp_path, {"/etc/fstab": "/dev/disk/by-id/ata-QEMU_1-part2 none swap sw 0 0\n"})
    assert changed == {"/etc/fstab": f"UUID={SWAP_UUID} none swap sw 0 0\n"}


def test_bytes_that_are_no_text_stay_as_they_are(tmp_path: Path) -> None:
    files = FolderFiles(tmp_path, {"/boot/initrd.img-6": ""})
    files.write("/etc/fstab", b"# caf\xe9\n/dev/sda1 / ext4 defaults 0 1\n")
    draft = Draft(files)
    list(names.repair(draft, system()))
    (change,) = draft.changes()
    assert change.after == f"UUID={ROOT_UUID}".join(["# caf\xe9\n", " / ext4 defaults 0 1\n"]).encode("latin-1")
