"""What lives on a disk: first on the text of machines that we do not have, then on real loop devices."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.protocol.errors import NotADisk
from agent.volumes.blockdevices import BlockDevice, stacked_on
from agent.volumes.mounts import parse_mountinfo
from agent.volumes.topology import (
    MountedFilesystem,
    filesystems_on,
    in_use,
    mounted_filesystems,
    reason_in_use,
)
from tests.agent.volumes.disks import MIB, Lab, needs_root, run

# A server with LVM for root, an ESP, a btrfs pool over two disks, a loop-mounted image and a swap partition.
DEVICES = [
    BlockDevice("sda", "8:0", 1 << 30),
    BlockDevice("sda1", "8:1", 1 << 20, parent="sda"),
    BlockDevice("sda2", "8:2", 1 << 20, parent="sda"),
    BlockDevice("sda3", "8:3", 1 << 20, parent="sda", holders=("dm-0", "dm-1")),
    BlockDevice("dm-0", "253:0", 1 << 20),
    BlockDevice("dm-1", "253:1", 1 << 20),
    BlockDevice("sdb", "8:16", 1 << 30, members=("sdb", "sdc")),
    BlockDevice("sdc", "8:32", 1 << 30, members=("sdb", "sdc")),
    BlockDevice("sdd", "8:48", 1 << 30),
    BlockDevice("loop0", "7:0", 1 << 20, backing_file="/var/lib/images/disk.img"),
    BlockDevice("loop0p1", "7:1", 1 << 20, parent="loop0"),
]
MOUNTS = parse_mountinfo(
    """
26 1 253:0 / / rw,relatime shared:1 - ext4 /dev/mapper/vg-root rw
30 26 8:1 / /boot/efi rw - vfat /dev/sda1 rw
31 26 253:1 / /var rw - xfs /dev/mapper/vg-var rw
32 31 253:1 /lib/docker /var/lib/docker rw - xfs /dev/mapper/vg-var rw
40 26 0:40 /@data /data rw - btrfs /dev/sdc rw,subvolid=256
41 26 0:40 /@home /home rw - btrfs /dev/sdc rw,subvolid=257
42 26 0:41 / /tmp rw - tmpfs tmpfs rw
43 26 7:1 / /mnt rw - ext4 /dev/loop0p1 rw
"""
)
NUMBERS = {"/dev/sdc": "8:32"}


def on(*names: str) -> list[str]:
    found = filesystems_on(stacked_on(names, DEVICES), DEVICES, MOUNTS, NUMBERS.get)
    return [filesystem.mountpoint for filesystem in found]


def test_a_disks_filesystems_include_those_on_its_logical_volumes_deepest_first_and_root_last() -> None:
    assert on("sda") == ["/boot/efi", "/var", "/"]


def test_every_superblock_is_listed_once_by_its_shortest_mountpoint() -> None:
    assert "/var/lib/docker" not in on("sda")
    assert on("sdb") in (["/data"], ["/home"])


def test_btrfs_is_found_by_its_source_and_from_each_disk_of_its_pool() -> None:
    assert on("sdb") == on("sdc") != []


def test_what_lives_on_an_image_file_is_frozen_before_the_disk_that_holds_the_file() -> None:
    assert on("sda", "loop0") == ["/mnt", "/boot/efi", "/var", "/"]


def test_a_filesystem_tells_device_and_type() -> None:
    found = filesystems_on({"sda1"}, DEVICES, MOUNTS, NUMBERS.get)
    assert found == [MountedFilesystem("/dev/sda1", "/boot/efi", "vfat", False, 30)]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("sda", "/dev/sda1 is mounted at /boot/efi"),
        ("sdb", "/dev/sdc is mounted at /data"),
        ("sda2", "/dev/sda2 is used as swap"),
        ("sdd", None),
    ],
)
def test_why_a_disk_may_not_be_overwritten(name: str, reason: str | None) -> None:
    assert reason_in_use({name}, DEVICES, MOUNTS, {"8:2", None}, NUMBERS.get) == reason


def test_a_disk_that_is_only_held_is_in_use_too() -> None:
    held = [BlockDevice("sde", "8:64", 512, holders=("md127",)), BlockDevice("md127", "9:127", 512)]
    assert reason_in_use({"sde"}, held, [], set(), NUMBERS.get) == "/dev/sde is held by md127"


def test_a_path_that_does_not_exist_is_no_disk() -> None:
    with pytest.raises(NotADisk, match="/nowhere"):
        mounted_filesystems("/nowhere")


def test_an_image_file_that_nothing_shows_has_no_filesystems_and_is_free(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(512))
    assert mounted_filesystems(str(image)) == []
    assert in_use(str(image)) is None


class TestOnRealDevices:
    pytestmark = needs_root

    @pytest.mark.parametrize("kind", ["ext4", "xfs"])
    def test_a_mounted_filesystem_is_found_by_its_device_and_by_its_image_file(self, lab: Lab, kind: str) -> None:
        image, device, where = lab.filesystem(kind)
        for path in (device, str(image)):
            (found,) = mounted_filesystems(path)
            assert (found.device, found.mountpoint, found.fstype, found.read_only) == (device, str(where), kind, False)
            assert in_use(path) == f"{device} is mounted at {where}"

    def test_partitions_shown_by_loop_devices_with_an_offset_belong_to_the_image(self, lab: Lab) -> None:
        image = lab.image(64 * MIB)
        for number in (0, 1):
            device = lab.attach(image, f"--offset={number * 32 * MIB}", f"--sizelimit={32 * MIB}")
            run("mkfs.ext4", "-q", device)
            lab.mount(device, f"part{number}")
        found = [filesystem.mountpoint for filesystem in mounted_filesystems(str(image))]
        assert found == [str(lab.folder / "part0"), str(lab.folder / "part1")]

    def test_bind_mounts_add_nothing(self, lab: Lab) -> None:
        _, device, where = lab.filesystem("ext4")
        (where / "sub").mkdir()
        lab.mount(str(where / "sub"), "other-place", "--bind")
        lab.mount(str(where), "a-read-only-place", "--bind", "-o", "ro")
        (found,) = mounted_filesystems(device)
        assert found.mountpoint == str(where)
        assert not found.read_only

    def test_a_read_only_filesystem_is_known_as_such(self, lab: Lab) -> None:
        _, device, where = lab.filesystem("ext4")
        run("mount", "-o", "remount,ro", where)
        assert mounted_filesystems(device)[0].read_only

    def test_a_btrfs_pool_is_found_from_each_of_its_disks(self, lab: Lab) -> None:
        devices = [lab.attach(lab.image(112 * MIB, f"{number}.img")) for number in (0, 1)]
        run("mkfs.btrfs", "-q", *devices)
        where = lab.mount(devices[1], "pool")
        for device in devices:
            assert [filesystem.mountpoint for filesystem in mounted_filesystems(device)] == [str(where)]

    def test_an_image_on_a_mounted_image_comes_first(self, lab: Lab) -> None:
        outer, _, outside = lab.filesystem("xfs", "outer")
        inner, _, inside = lab.filesystem("ext4", "inner", folder=outside)
        found = [filesystem.mountpoint for filesystem in mounted_filesystems(str(outer), str(inner))]
        assert found == [str(inside), str(outside)]

    def test_an_attached_image_and_a_swap_device_are_in_use(self, lab: Lab) -> None:
        image = lab.image(4 * MIB)
        device = lab.attach(image)
        assert in_use(device) is None
        assert in_use(str(image)) == f"it is attached as {device}"
        run("mkswap", device)
        run("swapon", device)
        try:
            assert in_use(device) == f"{device} is used as swap"
        finally:
            run("swapoff", device)

    def test_the_disk_of_the_running_system_is_known(self) -> None:
        number = Path("/").stat().st_dev
        name = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
        if not name.exists():
            pytest.skip("root is not on a block device here")
        device = f"/dev/{name.resolve().name}"
        assert in_use(device) == "it is the running system's own disk (it holds /)"
