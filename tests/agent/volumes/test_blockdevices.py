"""Reading a machine's block devices from a tree such as /sys has, and following what is stacked on what."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.volumes.blockdevices import BlockDevice, disk_folder_number, names_at, read_block_devices, stacked_on


def add(sys: Path, place: str, number: str, sectors: int = 2048, **files: str) -> Path:
    """A device's folder below sys/devices, and its link in sys/class/block."""
    folder = sys / "devices" / place
    (folder / "holders").mkdir(parents=True)
    (folder / "dev").write_text(number + "\n")
    (folder / "size").write_text(f"{sectors}\n")
    for name, text in files.items():
        file = folder / name.replace("__", "/")
        file.parent.mkdir(exist_ok=True)
        file.write_text(text + "\n")
    link = sys / "class/block" / folder.name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(folder)
    return folder


@pytest.fixture
def sys(tmp_path: Path) -> Path:
    """A disk with an ESP and an LVM partition that holds root, a second disk in a btrfs pool, an image on root."""
    sda3 = "pci0/sda/sda3"
    add(tmp_path, "pci0/sda", "8:0", 1 << 21)
    add(tmp_path, "pci0/sda/sda1", "8:1", partition="1")
    add(tmp_path, sda3, "8:3", partition="3")
    (tmp_path / "devices" / sda3 / "holders/dm-0").mkdir()
    add(tmp_path, "virtual/dm-0", "253:0")
    add(tmp_path, "pci0/sdb", "8:16")
    add(tmp_path, "pci0/sdc", "8:32")
    add(tmp_path, "virtual/loop0", "7:0", loop__backing_file="/srv/disk.img")
    add(tmp_path, "virtual/loop1", "7:1", loop__backing_file="/dev/sda1")
    for member in ("sdb", "sdc"):
        (tmp_path / "fs/btrfs/0f3a/devices" / member).mkdir(parents=True)
    return tmp_path


def test_disks_partitions_holders_loops_and_pools_are_read(sys: Path) -> None:
    devices = {device.name: device for device in read_block_devices(sys)}
    assert devices["sda"] == BlockDevice("sda", "8:0", 1 << 30)
    assert devices["sda1"].parent == "sda"
    assert devices["sda3"].holders == ("dm-0",)
    assert devices["sdb"].members == ("sdb", "sdc")
    assert devices["loop0"].backing_file == "/srv/disk.img"


def test_a_device_that_vanishes_while_it_is_read_is_left_out(sys: Path) -> None:
    (sys / "devices/pci0/sdb/size").unlink()
    assert "sdb" not in [device.name for device in read_block_devices(sys)]


@pytest.mark.parametrize(
    ("start", "found"),
    [
        ("sda", {"sda", "sda1", "sda3", "dm-0", "loop1"}),
        ("sda1", {"sda1", "loop1"}),
        ("sda3", {"sda3", "dm-0"}),
        ("sdb", {"sdb", "sdc"}),
        ("loop0", {"loop0"}),
        ("gone", set()),
    ],
)
def test_what_lives_on_a_device_is_followed_upwards(sys: Path, start: str, found: set[str]) -> None:
    assert stacked_on([start], read_block_devices(sys)) == found


def test_an_image_file_is_known_by_the_loop_devices_that_show_it(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.touch()
    alias = tmp_path / "alias"
    alias.symlink_to(image)
    devices = [
        BlockDevice("loop0", "7:0", 512, backing_file=str(image)),
        BlockDevice("loop1", "7:1", 512, backing_file=str(tmp_path / "other.img (deleted)")),
    ]
    assert names_at(str(alias), devices) == {"loop0"}


def test_a_disk_is_told_from_one_that_has_its_number_later_unless_its_medium_may_change(sys: Path) -> None:
    (sys / "dev/block").mkdir(parents=True)
    for number, place in (
        ("8:0", "pci0/sda"),
        ("8:1", "pci0/sda/sda1"),
        ("8:16", "pci0/sdb"),
        ("7:0", "virtual/loop0"),
    ):
        (sys / "dev/block" / number).symlink_to(sys / "devices" / place)
        (sys / "devices" / place / "removable").write_text("1\n" if number == "8:16" else "0\n")
    assert disk_folder_number(8, 0, sys) == disk_folder_number(8, 1, sys) == (sys / "devices/pci0/sda").stat().st_ino
    assert disk_folder_number(8, 16, sys) is None
    assert disk_folder_number(7, 0, sys) is None
    with pytest.raises(OSError, match="8:32"):
        disk_folder_number(8, 32, sys)
